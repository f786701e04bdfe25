"""Overflows at random steps on random ranks, through Accelerate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_signvr.accelerate import sign_vote
from tests import overflows
from tests.accelerate.helpers import BATCH, OPTIMIZERS, build, flat, loss_of, new_accelerator
from tests.workers import run_workers


def _train(rank: int, name: str) -> tuple[list[float], list[np.ndarray], list[bool]]:
    """Loss scale and parameters after each step, and whether it was skipped."""
    accelerator = new_accelerator("fp16", gradient_accumulation_steps=1)
    accelerator.scaler = torch.amp.GradScaler(
        "cpu", init_scale=overflows.SCALE, growth_interval=overflows.GROWTH_INTERVAL
    )
    sv = sign_vote(accelerator)
    model = build()
    count = overflows.STEPS * overflows.WORKERS * BATCH
    inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(inputs, inputs.sum(1, keepdim=True).sin())
    model, optimizer, loader = accelerator.prepare(
        model, OPTIMIZERS[name](model.parameters()), DataLoader(data, BATCH)
    )
    scales, parameters, skipped = [], [], []
    for step, (batch, ranks) in enumerate(zip(loader, overflows.overflows(), strict=True)):
        factor = (float("inf"), float("nan"))[step % 2] if rank in ranks else 1.0
        sv.backward(lambda batch=batch, factor=factor: loss_of(model, batch) * factor)
        optimizer.step()
        optimizer.zero_grad()
        scales.append(accelerator.scaler.get_scale())
        parameters.append(flat(model.parameters()))
        skipped.append(optimizer.step_was_skipped)
    return scales, parameters, skipped


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Signum", "SSVR"])
def test_all_workers_skip_the_same_steps(name: str) -> None:
    results = run_workers(_train, overflows.WORKERS, name)
    for scales, parameters, skipped in results:
        assert scales == overflows.loss_scales()
        assert skipped == [bool(ranks) for ranks in overflows.overflows()]
        assert all(map(np.array_equal, parameters, results[0][1]))
