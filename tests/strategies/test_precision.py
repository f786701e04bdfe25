"""Each precision, and loss scaling on which all workers agree."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from lightning_signvr.amp import SharedGradScaler
from lightning_signvr.optimizers import SSVR
from tests import overflows
from tests.strategies.helpers import (
    LOSS_SCALE,
    LR,
    Batch,
    LogLines,
    Regression,
    batches,
    fit,
    float16,
    parameters_of,
    same_on_all,
    signum,
    state_of,
)
from tests.workers import run_workers

STEPS, OVERFLOW_AT = 6, 2


PRECISIONS = {
    "32-true": lambda: {"precision": "32-true"},
    "bf16-mixed": lambda: {"precision": "bf16-mixed"},
    "bf16-true": lambda: {"precision": "bf16-true"},
    "16-mixed": float16,
}


def _fit_in_each_precision(rank: int) -> dict[str, tuple[np.ndarray, np.ndarray, set[str]]]:
    results = {}
    for precision, options in PRECISIONS.items():
        module = Regression(seed=rank)
        trainer = fit(module, batches(rank, STEPS), gradient_clip_val=0.5, **options())
        [optimizer] = trainer.optimizers
        dtypes = {str(p.dtype) for p in module.parameters()}
        dtypes |= {str(state["momentum_buffer"].dtype) for state in optimizer.state.values()}
        results[precision] = parameters_of(module), state_of(optimizer), dtypes
    return results


def test_replicas_stay_equal_in_each_precision() -> None:
    results = run_workers(_fit_in_each_precision, 2)
    start = parameters_of(Regression())
    trained = []
    for precision in PRECISIONS:
        parameters, momenta, dtypes = zip(*(result[precision] for result in results), strict=True)
        assert same_on_all(parameters), precision
        assert not same_on_all(momenta), precision  # each worker's own
        low = {"torch.bfloat16"} if precision == "bf16-true" else set()
        assert dtypes[0] == {"torch.float32"} | low, precision
        largest_move = np.abs(parameters[0] - start).max()
        assert LR < largest_move <= 1.5 * STEPS * LR, precision  # 1.5: rounding of bfloat16 parameters
        trained.append(parameters[0])
    assert not np.array_equal(trained[0], trained[1])  # the precision reached the model


class _Overflowing(Regression):
    """One gradient of the last worker is infinite, at one step."""

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        last_worker = self.global_rank == self.trainer.world_size - 1
        return loss * float("inf") if last_worker and batch_idx == OVERFLOW_AT else loss


class _Record(L.Callback):
    """Loss scale and parameters after each batch."""

    def __init__(self) -> None:
        self.scales: list[float] = []
        self.parameters: list[np.ndarray] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.scales.append(trainer.precision_plugin.scaler.get_scale())
        self.parameters.append(parameters_of(pl_module))


def _fit_with_an_overflow(rank: int) -> tuple[list[float], list[np.ndarray]]:
    record = _Record()
    fit(_Overflowing(), batches(rank, STEPS), callbacks=[record], gradient_clip_val=0.5, **float16())
    return record.scales, record.parameters


@pytest.mark.parametrize("workers", [1, 2])
def test_all_workers_skip_the_step_in_which_one_overflows(workers: int) -> None:
    scales, parameters = zip(*run_workers(_fit_with_an_overflow, workers), strict=True)
    for own in scales:
        assert own == [LOSS_SCALE] * OVERFLOW_AT + [LOSS_SCALE / 2] * (STEPS - OVERFLOW_AT)
    for before, after in zip(parameters[0], parameters[0][1:], strict=False):
        skipped = after is parameters[0][OVERFLOW_AT]
        assert np.array_equal(before, after) == skipped
    assert all(same_on_all(step) for step in zip(*parameters, strict=True))


class _OverflowingAtRandom(Regression):
    """Where and when a table says so."""

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        bad = (float("inf"), float("nan"))[batch_idx % 2]
        return loss * bad if self.global_rank in overflows.overflows()[batch_idx] else loss


METHODS = {"Signum": signum, "SSVR": lambda parameters: SSVR(parameters, lr=LR, beta=0.3)}


def _fit_with_random_overflows(rank: int, method: str) -> tuple[list[float], list[np.ndarray]]:
    record = _Record()
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=overflows.SCALE, growth_interval=overflows.GROWTH_INTERVAL
    )
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    module = _OverflowingAtRandom(METHODS[method])
    fit(module, batches(rank, overflows.STEPS), callbacks=[record], plugins=[plugin])
    return record.scales, record.parameters


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_overflows_at_random_on_random_ranks(method: str) -> None:
    results = run_workers(_fit_with_random_overflows, overflows.WORKERS, method)
    scales, parameters = zip(*results, strict=True)
    assert all(own == overflows.loss_scales() for own in scales)
    assert all(same_on_all(step) for step in zip(*parameters, strict=True))
    moved = [not np.array_equal(*pair) for pair in zip(parameters[0], parameters[0][1:], strict=False)]
    assert moved == [not ranks for ranks in overflows.overflows()[1:]]


class _Lost(Regression):
    """The last worker has NaN in every step."""

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        last_worker = self.global_rank == self.trainer.world_size - 1
        return super().training_step(batch, batch_idx) * (float("nan") if last_worker else 1.0)


def _fit_with_a_lost_worker(rank: int) -> tuple[str, int, list[str]]:
    log, record = LogLines(), _Record()
    scaler = SharedGradScaler("cpu", init_scale=LOSS_SCALE, nonfinite_limit=4)
    options = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=scaler)], "callbacks": [record]}
    with pytest.raises(RuntimeError) as error:
        fit(Regression() if rank == 0 else _Lost(), batches(rank, STEPS), **options)
    return str(error.value), len(record.scales), log.lines


def test_a_worker_with_nan_in_every_step_ends_the_run_on_all() -> None:
    results = run_workers(_fit_with_a_lost_worker, 2)
    for message, steps, _ in results:
        assert "the gradients of rank 1 had NaN or inf in 4 steps in a row" in message
        assert steps == 3
    warnings = [sum("rank 1 has NaN or inf" in line for line in lines) for _, _, lines in results]
    assert warnings == [1, 0]
