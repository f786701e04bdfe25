"""A batch with NaN on one worker spoils no parameters, no estimate and no statistics of BatchNorm."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import AdamW

from lightning_signvr.optimizers import SSVR
from lightning_signvr.strategies import SignVoteStrategy
from tests.strategies.helpers import (
    LR,
    Regression,
    batches,
    fit,
    float16,
    loader,
    make_trainer,
    parameters_of,
    same_on_all,
    signum,
)
from tests.workers import WorkerError, run_workers

STEPS, BAD_STEP, BAD_RANK = 6, 2, 1
OPTIMIZERS: dict[str, Any] = {
    "Signum": signum,
    "SSVR": lambda parameters: SSVR(parameters, lr=LR, beta=0.2),
    "AdamW": lambda parameters: AdamW(parameters, lr=LR),
}
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"accumulate_grad_batches": 2},
    "clipped": {"gradient_clip_val": 0.5},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "overlapped": {"strategy": {"overlap": True}},
    "skipped": {"strategy": {"nonfinite": "skip"}},
    "verified": {"strategy": {"verify": True}},
}


def data_of(rank: int) -> list[Any]:
    data = batches(rank, STEPS)
    if rank == BAD_RANK:
        data[BAD_STEP][0][3] = float("nan")
    return data


def make_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1))


def train(rank: int) -> dict[tuple[str, str], tuple[np.ndarray, bool]]:
    results = {}
    for name, optimizer in OPTIMIZERS.items():
        for form, options in {**FORMS, "16-mixed": float16()}.items():
            torch.manual_seed(0)
            module = Regression(optimizer, net=make_net())
            strategy = SignVoteStrategy(**options.get("strategy", {}))
            trainer = fit(module, data_of(rank), **{**options, "strategy": strategy})
            state = trainer.optimizers[0].state
            kept = [value for of_one in state.values() for value in of_one.values()]
            tensors = [*module.parameters(), *module.buffers()]
            tensors += [value for value in kept if isinstance(value, torch.Tensor)]
            whole = all(bool(tensor.isfinite().all()) for tensor in tensors if tensor.is_floating_point())
            results[name, form] = parameters_of(module), whole
    return results


@pytest.mark.slow
def test_nothing_is_poisoned_and_replicas_stay_equal() -> None:
    results = run_workers(train, 3, timeout=120)
    for key in results[0]:
        parameters, whole = zip(*(result[key] for result in results), strict=True)
        assert all(whole), key
        assert same_on_all(parameters), key


class Broken(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        is_bad = self.global_rank == BAD_RANK and batch_idx >= BAD_STEP
        return self.net(batch[0]).mean() * (float("nan") if is_bad else 1.0)

    def configure_optimizers(self) -> Any:
        return signum(self.parameters())


def never_recovers(rank: int) -> None:
    trainer = make_trainer(SignVoteStrategy(nonfinite_limit=3))
    trainer.fit(Broken(), loader(batches(rank, 20)))


def test_a_worker_that_never_recovers_ends_the_run_by_name() -> None:
    with pytest.raises(WorkerError) as error:
        run_workers(never_recovers, 2)
    message = f"rank {BAD_RANK} had NaN or inf in its gradients in 3 steps in a row, the last one step 4"
    assert str(error.value).count(message) == 2
