"""The GradScaler whose ranks agree."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from lightning_signvr import Signum
from lightning_signvr.amp import SharedGradScaler
from lightning_signvr.optimizers import SSVR, AnchoredOptimizer, SignOptimizer
from tests.overflows import GROWTH_INTERVAL, STEPS, WORKERS, loss_scales, overflows
from tests.overflows import SCALE as FIRST_SCALE
from tests.strategies.helpers import LogLines
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
    assert shared.traffic.bytes_sent == 1  # a flag to the other one
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


METHODS: dict[str, Callable[[Any], SignOptimizer]] = {
    "Signum": partial(Signum, lr=0.01, momentum=0.9),
    "SSVR": partial(SSVR, lr=0.01, beta=0.3),
}


def _with_random_overflows(rank: int, method: str) -> tuple[list[float], list[Tensor], int]:
    """The loss scale and the weights after each step, and the optimizer's count of steps."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = METHODS[method](model.parameters())
    scaler = SharedGradScaler("cpu", init_scale=FIRST_SCALE, growth_interval=GROWTH_INTERVAL)
    generator = torch.Generator().manual_seed(rank)

    def backward(inputs: Tensor, factor: float) -> None:
        with torch.autocast("cpu", torch.float16):
            loss = (model(inputs) - inputs.sum(1, keepdim=True)).float().square().mean()
        scaler.scale(loss * factor).backward()

    scales, weights = [], []
    for step, ranks in enumerate(overflows()):
        bad = (float("inf"), float("nan"))[step % 2] if rank in ranks else 1.0
        inputs = torch.randn(8, 4, generator=generator)
        at_anchor = isinstance(optimizer, AnchoredOptimizer) and bool(optimizer.active_anchors())
        there = at_anchor and step % 3 > 0  # in one third of the cases at the current point
        optimizer.zero_grad()
        backward(inputs, 1.0 if there else bad)
        if isinstance(optimizer, AnchoredOptimizer):
            with optimizer.at_previous_iterate():
                backward(inputs, bad if there else 1.0)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        weights.append(model.weight.detach().clone())
    return scales, weights, optimizer.param_groups[0]["step"]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_overflows_at_random_on_random_ranks(method: str) -> None:
    results = run_workers(_with_random_overflows, WORKERS, method)
    skipped = [bool(ranks) for ranks in overflows()]
    for scales, weights, steps in results:
        assert scales == loss_scales()
        assert steps == STEPS - sum(skipped)
        assert all(map(torch.equal, weights, results[0][1]))
        moved = [not torch.equal(*pair) for pair in pairwise(weights)]
        assert moved == [not skip for skip in skipped[1:]]
        assert (weights[-1] - 1).abs().max() < 0.1 < (weights[0] - 1).abs().max()  # and it has learnt


def _failing_ranks(rank: int, schedule: list[set[int]], log: LogLines) -> tuple[list[str], int, str]:
    """What is logged, the steps that end well, and the error; in each step some ranks have a NaN."""
    log.lines, weight = [], nn.Parameter(torch.zeros(1))
    optimizer, other = (torch.optim.SGD([weight], lr=1.0) for _ in range(2))
    scaler = SharedGradScaler("cpu", nonfinite_limit=3)
    for done, ranks in enumerate(schedule):
        try:
            for each, factor in (other, 1.0), (optimizer, float("nan") if rank in ranks else 1.0):
                each.zero_grad()
                scaler.scale(weight.sum() * factor).backward()
                scaler.step(each)
                scaler.update()
        except RuntimeError as error:
            return log.lines, done, str(error)
    return log.lines, len(schedule), ""


def _failing(rank: int) -> list[tuple[list[str], int, str]]:
    schedules: list[list[set[int]]] = [[{1}] * 9, [set(), {2, 1}, {1, 2}, {2}, {2}], [{1}, {1}, {2}] * 4]
    log = LogLines()
    return [_failing_ranks(rank, schedule, log) for schedule in schedules]


def test_ranks_that_never_have_a_finite_gradient_are_named() -> None:
    results = run_workers(_failing, 3)
    for rank, (one, two, none) in enumerate(results):
        assert [done for _, done, _ in (one, two, none)] == [2, 3, 12]
        assert "the gradients of rank 1 had NaN or inf in 3 steps in a row" in one[2]
        assert "the gradients of rank 2 had" in two[2]
        assert none[2] == ""
        begun = [[line for line in lines if "has NaN or inf" in line] for lines, *_ in (one, two, none)]
        if rank > 0:
            assert begun == [[]] * 3
            continue
        assert [line.split(" in ")[0] for line in begun[0]] == ["rank 1 has NaN or inf"]
        assert ["rank 1" in line for line in begun[1]] == [True, False]
        assert len(begun[2]) == 8


def test_a_scale_that_begins_far_too_large_is_no_error() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = SharedGradScaler("cpu")
    for _ in range(100):
        optimizer.zero_grad()
        scaler.scale(weight.sum() * 1000).backward()
        weight.grad = weight.grad.half().float()  # type: ignore[union-attr]
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 64  # 64,000 is a float16


@pytest.mark.parametrize(("limit", "error"), [(0, ValueError), (2.5, TypeError)])
def test_a_bad_limit_is_named(limit: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="nonfinite_limit must be"):
        SharedGradScaler("cpu", nonfinite_limit=limit)


def test_without_a_limit_it_goes_on() -> None:
    scaler = SharedGradScaler("cpu", nonfinite_limit=None)
    for _ in range(60):
        assert _step(scaler, float("nan"))[0] is False
