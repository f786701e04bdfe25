"""Loading a checkpoint of another number of workers under Accelerate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_signvr.accelerate import sign_vote
from tests.accelerate.helpers import OPTIMIZERS, build, flat, new_accelerator
from tests.workers import WorkerError, run_workers


def run(rank: int, folder: str, on_resize: Any) -> tuple[np.ndarray, np.ndarray | None, int]:
    """Two steps and save, or load with ``on_resize``; parameters, momentum, steps."""
    accelerator = new_accelerator()
    sv = sign_vote(accelerator, on_resize=on_resize or "error")
    model = build(seed=9 if on_resize else 0)
    model, _ = accelerator.prepare(model, OPTIMIZERS["Signum"](model.parameters()))
    if on_resize:
        accelerator.load_state(folder)
    else:
        for step in range(2):
            with accelerator.accumulate(model):
                for parameter in model.parameters():
                    generator = torch.Generator().manual_seed(10 * rank + step)
                    parameter.grad = torch.randn(parameter.shape, generator=generator)
                sv.optimizers[0].step()
        accelerator.save_state(folder)
    states = sv.optimizers[0].state_dict()["state"].values()
    momentum = flat([state["momentum_buffer"] for state in states]) if states else None
    return flat(model.parameters()), momentum, sv.votes[0].step


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 1)])
def test_resize(before: int, after: int, tmp_path: Path) -> None:
    saved = run_workers(run, before, str(tmp_path), None)
    mean = np.mean([momentum.astype(np.float64) for _, momentum, _ in saved], axis=0).astype(np.float32)
    for on_resize, expected in (("mean", mean), ("reset", None)):
        for parameters, momentum, step in run_workers(run, after, str(tmp_path), on_resize):
            np.testing.assert_array_equal(parameters, saved[0][0])
            np.testing.assert_array_equal(momentum, expected)
            assert step == 2


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    run_workers(run, 2, str(tmp_path), None)
    path = tmp_path / "sign_vote_1.bin"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(WorkerError, match=r"sign_vote_1.bin is damaged or incomplete"):
        run_workers(run, 2, str(tmp_path), "mean")
