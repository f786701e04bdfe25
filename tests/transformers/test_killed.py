"""Kill -9 one worker after a checkpoint, resume: the run ends as the uninterrupted one, to the last bit."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_signvr.transformers import SignVoteTrainer
from tests.transformers.helpers import (
    ACCUMULATE,
    BATCH,
    OPTIMIZERS,
    WORKERS,
    Normalized,
    arguments,
    flat,
    points,
    state_of,
)
from tests.workers import WorkerError, run_workers

STEPS, SAVED_AT = 10, 4  # in two epochs, whose last steps are short
KILLED_AT = 11  # the microbatch at which the last worker is killed, in the second epoch
NAMES = ["Signum", "SSVR", "AdamW"]


class End(NamedTuple):
    parameters: np.ndarray
    buffers: np.ndarray
    state: np.ndarray
    step: int


class Killable(SignVoteTrainer):
    victim: int | None = None
    microbatches = 0

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.args.process_index == self.victim and self.microbatches == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        self.microbatches += 1
        return super().training_step(*args, **kwargs)


def new_trainer(name: str, folder: str, seed: int = 0) -> Killable:
    """Two epochs; samples are shuffled, and dropout masks come from the generator that a checkpoint holds."""
    torch.manual_seed(seed)
    model = Normalized()
    args = arguments(
        folder,
        num_train_epochs=2,
        train_sampling_strategy="random",
        save_strategy="steps",
        save_steps=SAVED_AT,
    )
    samples = points((STEPS - 2) // 2 * ACCUMULATE * WORKERS * BATCH + BATCH)
    optimizer = OPTIMIZERS[name](model.parameters())
    return Killable(model, args, train_dataset=samples, optimizers=(optimizer, None))


def train_and_be_killed(rank: int, name: str, folder: str) -> None:
    trainer = new_trainer(name, folder)
    trainer.victim = WORKERS - 1
    trainer.train()


def end_of(trainer: Killable, checkpoint: str | None = None) -> End:
    trainer.train(resume_from_checkpoint=checkpoint)
    [optimizer], [vote] = trainer.sign_vote.optimizers, trainer.sign_vote.votes
    model = trainer.model
    return End(flat(model.parameters()), flat(model.buffers()), state_of(optimizer), vote.step)


def resume_and_train_whole(rank: int, name: str, killed: str, whole: str) -> tuple[End, End]:
    resumed = end_of(new_trainer(name, killed, seed=9), f"{killed}/checkpoint-{SAVED_AT}")
    return resumed, end_of(new_trainer(name, whole))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_killed_run_resumes_as_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    killed, whole = str(tmp_path / "killed"), str(tmp_path / "whole")
    with pytest.raises(WorkerError, match="rank 1: died without a word") as error:
        run_workers(train_and_be_killed, WORKERS, name, killed)
    assert "rank 0: Traceback" in str(error.value)  # the other one fails too, rather than wait

    ends = run_workers(resume_and_train_whole, WORKERS, name, killed, whole)
    for rank, (resumed, expected) in enumerate(ends):
        for field, got, wanted in zip(End._fields, resumed, expected, strict=True):
            np.testing.assert_array_equal(got, wanted, err_msg=f"{field} of rank {rank}")
        np.testing.assert_array_equal(resumed.parameters, ends[0][0].parameters, err_msg="they parted")
    first, second = (resumed for resumed, _ in ends)
    assert np.array_equal(first.state, second.state) == (name == "AdamW")
    assert first.step == STEPS
