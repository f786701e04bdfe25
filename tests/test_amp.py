"""The GradScaler whose ranks agree."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.amp import GradScaler

from lightning_signvr.amp import SharedGradScaler
from tests.workers import run_workers

SCALE = 8.0


def _step(scaler: GradScaler, gradient: float | None) -> tuple[bool, float]:
    """Whether the optimizer stepped, and the scale after."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": []}, {"params": [weight]}], lr=1.0)
    steps = []
    optimizer.register_step_post_hook(lambda *_: steps.append(True))
    loss = scaler.scale(weight.sum())  # also makes the scaler's tensors
    if gradient is not None:
        (loss * gradient).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    return bool(steps), scaler.get_scale()


def _steps(rank: int) -> dict[str, tuple[bool, float]]:
    def here(*gradients: float | None) -> tuple[bool, float]:
        return _step(SharedGradScaler("cpu", init_scale=SCALE, growth_interval=1), gradients[rank])

    shared = SharedGradScaler("cpu", init_scale=SCALE)
    _step(shared, 1.0)
    assert shared.traffic.collectives == 1
    assert shared.traffic.bytes_sent == 4  # 2 (n - 1) / n of one float32
    return {
        "both finite": here(1.0, 1.0),
        "inf on one": here(1.0, float("inf")),
        "NaN on the other": here(float("nan"), 1.0),
        "none on one": here(1.0, None),
        "none on one, inf on the other": here(float("inf"), None),
        "none on both": here(None, None),
        "disabled": _step(SharedGradScaler("cpu", enabled=False), (1.0, float("inf"))[rank]),
    }


def test_ranks_step_or_skip_together() -> None:
    first, second = run_workers(_steps, 2)
    assert first == second
    stepped, skipped = (True, 2 * SCALE), (False, SCALE / 2)
    assert first == {
        "both finite": stepped,
        "inf on one": skipped,
        "NaN on the other": skipped,
        "none on one": stepped,
        "none on one, inf on the other": skipped,
        "none on both": stepped,
        "disabled": (True, 1.0),
    }


@pytest.mark.parametrize("gradient", [1.0, float("inf")])
def test_alone_it_is_torchs_scaler(gradient: float) -> None:
    settings = {"init_scale": SCALE, "growth_interval": 1}
    shared = SharedGradScaler("cpu", **settings)
    assert _step(shared, gradient) == _step(GradScaler("cpu", **settings), gradient)
    assert shared.traffic.collectives == 0


@pytest.mark.parametrize("enabled", [True, False])
def test_like_takes_over_settings_and_state(enabled: bool) -> None:
    original = GradScaler("cpu", SCALE, 3.0, 0.25, 7, enabled)
    _step(original, 1.0)
    shared = SharedGradScaler.like(original)
    assert shared.state_dict() == original.state_dict()
    assert shared.is_enabled() == enabled
    assert _step(shared, float("inf")) == _step(original, float("inf"))
