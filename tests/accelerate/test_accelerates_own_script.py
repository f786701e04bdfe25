"""Accelerate's own test of training, from its wheel, under votes: two lines are added."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.test_utils.scripts import test_script as theirs
from accelerate.test_utils.training import RegressionDataset, RegressionModel
from accelerate.utils import set_seed

from tests.workers import run_workers

IMPORT = "from lightning_signvr.accelerate import sign_vote\n"
PREPARED = re.compile(r"^( *)accelerator = Accelerator\(.*\)$", re.MULTILINE)
RULES = "ties='zero'"  # so that the simulation needs no coins


def simulate(
    length: int, batch_size: int, generator: torch.Generator, use_seedable_sampler: bool = False
) -> tuple[Any, Any]:
    """What all workers together come to, in the place of their baseline, which averages gradients."""
    set_seed(42)
    generator.manual_seed(42)
    train_set = RegressionDataset(length=length, seed=42)
    model = RegressionModel()
    for _ in range(3):
        for batch in theirs.generate_baseline_dataloader(
            train_set, generator, batch_size, use_seedable_sampler
        ):
            workers = list(zip(batch["x"].chunk(2), batch["y"].chunk(2), strict=True))
            losses = [torch.nn.functional.mse_loss(model(x), y) for x, y in workers]
            parameters = [model.a, model.b]
            gradients = [torch.autograd.grad(loss, parameters) for loss in losses]
            for parameter, *own in zip(parameters, *gradients, strict=True):
                parameter.data -= 0.1 * sum(gradient.sign() for gradient in own).sign()
    return train_set, model


def run_theirs(rank: int) -> int:
    Accelerator()
    source, added = PREPARED.subn(
        rf"\g<0>\n\1sign_vote(accelerator, {RULES})", inspect.getsource(theirs.training_check)
    )
    names = {**vars(theirs), "mock_training": simulate}
    exec(IMPORT + source, names)
    names["training_check"](use_seedable_sampler=True)
    return added


@pytest.mark.slow
def test_their_training_gives_what_a_simulation_of_votes_gives() -> None:
    added = run_workers(run_theirs, 2, env={"ACCELERATE_USE_CPU": "true"})
    assert added[0] >= 3  # a line for each Accelerator: plain, split batches, bf16, ...
