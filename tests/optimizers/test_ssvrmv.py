"""SSVR-MV, option 1, against its formula, its identities and the proposition on its bias."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_signvr.optimizers import SSVR
from lightning_signvr.optimizers.ssvrmv import SSVRMV
from lightning_signvr.optimizers.stosignsgd import StoSignSGD
from tests.optimizers.problems import SIZE, gradient, majority
from tests.optimizers.randomized import (
    LR,
    check_learns,
    check_resumes,
    check_unused_stay,
    radius_by,
    steps,
    stochastic_sign,
    train,
    weights_at_zero,
)
from tests.workers import run_workers

STEPS = 50
OPTIONS: list[dict[str, Any]] = [
    {"radius": 16.0, "radius_policy": "fixed"},
    {"radius": 1.0, "radius_policy": "max", "weight_decay": 0.5},
    {"radius": 1.5, "radius_policy": "rms", "beta": 0.25},
    {"radius": 1.0, "radius_policy": "running"},
]


def reference(workers: int, radius: float, radius_policy: str, **options: float) -> Tensor:
    """``v = g + (1 - beta) (v - g^-)``, first ``v = g``; majority of ``S_R(v)``; step."""
    beta, decay = options.get("beta", 0.5), LR * options.get("weight_decay", 0.0)
    point = previous = torch.zeros(SIZE, dtype=torch.float64)
    estimates: list[Any] = [0.0] * workers
    largest = [torch.zeros(SIZE, dtype=torch.float64)] * workers
    for step in range(STEPS):
        ballots = []
        for rank in range(workers):
            fresh, old = gradient(point, rank, step), gradient(previous, rank, step)
            estimates[rank] = v = fresh + (1 - beta) * (estimates[rank] - old) if step else fresh
            largest[rank] = torch.maximum(largest[rank], v.abs())
            radii = radius_by(radius_policy, radius, v, largest[rank])
            ballots.append(stochastic_sign(v, radii, rank, step))
        previous, point = point, (1 - decay) * point - LR * majority(ballots)
    return point


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_one_worker_follows_the_formula_bit_for_bit(options: dict[str, Any]) -> None:
    assert torch.equal(train(0, SSVRMV, options), reference(1, **options))


def train_all(rank: int) -> list[Tensor]:
    return [train(rank, SSVRMV, options) for options in OPTIONS[::3]]


def test_three_workers_follow_the_formula_bit_for_bit() -> None:
    expected = [reference(3, **options) for options in OPTIONS[::3]]
    for replica in run_workers(train_all, 3):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(replica, expected, strict=True))


def test_beta_one_is_stosignsgd() -> None:
    radius = {"radius": 16.0, "radius_policy": "fixed"}
    assert torch.equal(train(0, SSVRMV, {"beta": 1.0, **radius}), train(0, StoSignSGD, radius))


def test_a_tiny_radius_is_ssvr() -> None:
    tiny = {"radius": 1e-30, "radius_policy": "fixed"}
    assert torch.equal(train(0, SSVRMV, tiny), train(0, SSVR, {"beta": 0.5}))


def test_correction_zero_needs_one_gradient() -> None:
    weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimizer = SSVRMV([weight], LR, correction=0.0)
    for step in range(5):
        weight.grad = gradient(weight.detach(), 0, step)
        optimizer.step()
    assert "previous_iterate" not in optimizer.state[weight]


def test_second_gradient_must_not_be_missing() -> None:
    weight = nn.Parameter(torch.zeros(SIZE))
    optimizer = SSVRMV([weight], LR)
    weight.grad = torch.ones(SIZE)
    optimizer.step()
    with pytest.raises(RuntimeError, match="SSVRMV needs the gradients"):
        optimizer.step()


# -- arXiv 2609.18656, proposition 1 ----------------------------------------------------------------

COPIES, COARSE = 4096, 1 / 16  # independent runs side by side, and their step


def slope(point: Tensor, rank: int) -> Tensor:
    """Of ``log cosh(x) / 2 + c x`` with c = 1/4, 1/4 and -1/2: the mean over workers is 0 at x = 0."""
    return torch.tanh(point) / 2 + (0.25, 0.25, -0.5)[rank]


def descend(rank: int) -> list[Tensor]:
    """SSVR and SSVR-MV with exact gradients, from the minimizer of the mean."""
    weights = [nn.Parameter(torch.zeros(COPIES)) for _ in range(2)]
    ssvr = SSVR([weights[0]], COARSE, beta=0.5)
    ssvrmv = SSVRMV([weights[1]], COARSE, beta=0.5, radius=4.0, radius_policy="fixed")

    def closure() -> float:
        for weight in weights:
            weight.grad = slope(weight.detach(), rank)
        return 0.0

    for _ in range(20):
        ssvr.step(closure)
    for _ in range(150):
        ssvrmv.step(closure)
    return [weight.detach() for weight in weights]


def test_deterministic_votes_leave_the_minimizer_and_stochastic_ones_hover_there() -> None:
    results = run_workers(descend, 3)
    deterministic, stochastic = results[0]
    for others in results[1:]:
        assert torch.equal(others[0], deterministic)
        assert torch.equal(others[1], stochastic)
    assert (deterministic + math.atanh(0.5)).abs().max() <= COARSE
    assert (torch.tanh(deterministic) / 2).abs().mean() == pytest.approx(0.25, abs=0.02)
    assert 4.5 * stochastic.std() < 0.05 * math.sqrt(COPIES)
    assert abs(stochastic.mean()) < 0.05  # its own bias, u^3 at 0, moves it by 0.0013


# -- conventions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["fixed", "running"])
def test_resumes(policy: str, tmp_path: Path) -> None:
    check_resumes(SSVRMV, {"radius": 2.0, "radius_policy": policy}, tmp_path)


@pytest.mark.parametrize("policy", ["fixed", "max", "rms", "running"])
def test_what_has_no_gradient_does_not_move(policy: str) -> None:
    check_unused_stay(SSVRMV, {"radius": 1.0, "radius_policy": policy, "correction": 0.0})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_learns_with_its_defaults(dtype: torch.dtype) -> None:
    check_learns(SSVRMV, dtype)


def test_clip_fraction() -> None:
    weights = weights_at_zero()
    optimizer = SSVRMV(weights, LR, radius=4.0, radius_policy="fixed")
    steps(weights, optimizer, 0, 3)
    assert optimizer.clip_fraction is None
    optimizer.counts_clipping = True
    assert optimizer.clip_fraction is None
    for step in range(3, 6):
        steps(weights, optimizer, 0, 1, first=step)
        estimates = torch.cat([optimizer.state[weight]["estimate"] for weight in weights])
        assert optimizer.clip_fraction is not None
        assert optimizer.clip_fraction.dim() == 0
        assert optimizer.clip_fraction == (estimates.abs() > 4).float().mean()
    assert copy.deepcopy(optimizer).counts_clipping


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("radius", 0.0, ValueError),
        ("radius", -1.0, ValueError),
        ("radius", float("inf"), ValueError),
        ("radius", float("nan"), ValueError),
        ("radius", "max", TypeError),
        ("radius_policy", "norm", ValueError),
        ("beta", 0.0, ValueError),
        ("beta", 1.1, ValueError),
        ("correction", 1.5, ValueError),
        ("correction_steps", 0, ValueError),
        ("previous", "lastbatch", ValueError),
        ("lr", -1.0, ValueError),
    ],
)
def test_bad_arguments_are_named(name: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^{name} must be"):
        SSVRMV([nn.Parameter(torch.zeros(1))], **{name: value})  # type: ignore[arg-type]
