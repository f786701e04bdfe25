"""Sto-signSGD, with and without momentum, against its formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_signvr import LocalVote, SignSGD, Signum
from lightning_signvr.optimizers.stosignsgd import StoSignSGD
from tests.optimizers.problems import SIZE, gradient, majority
from tests.optimizers.randomized import (
    LR,
    check_learns,
    check_resumes,
    check_unused_stay,
    radii_by,
    steps,
    stochastic_sign,
    train,
    weights_at_zero,
)
from tests.workers import run_workers

STEPS = 50
OPTIONS: list[dict[str, Any]] = [
    {"radius": 16.0},
    {"radius": 8.0, "momentum": 0.5, "weight_decay": 0.5},
    {"radius": 1.0, "radius_policy": "running", "momentum": 0.75},
    {"radius": 1.5, "radius_policy": "rms"},
    {"radius": 0.5, "radius_policy": "max", "momentum": 0.5, "maximize": True},
    {"radius": 1.5, "radius_policy": "rms", "shared_radius": False},
]


def reference(
    workers: int,
    radius: float,
    radius_policy: str = "fixed",
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    maximize: bool = False,
    shared_radius: bool = True,
) -> Tensor:
    """``m = momentum m + (1 - momentum) g``; majority of ``P[+1] = (1 + m / b) / 2``; step."""
    point, before = torch.zeros(SIZE, dtype=torch.float64), None
    averages, largest = [[torch.zeros(SIZE, dtype=torch.float64)] * workers for _ in range(2)]
    for step in range(STEPS):
        for rank in range(workers):
            averages[rank] = momentum * averages[rank] + (1 - momentum) * gradient(point, rank, step)
            largest[rank] = torch.maximum(largest[rank], averages[rank].abs())
        radii = radii_by(radius_policy, radius, averages, largest, before)
        before = torch.stack(averages) if shared_radius and workers > 1 else None
        ballots = [stochastic_sign(averages[rank], radii[rank], rank, step) for rank in range(workers)]
        point = (1 - LR * weight_decay) * point + (LR if maximize else -LR) * majority(ballots)
    return point


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_one_worker_follows_the_formula_bit_for_bit(options: dict[str, Any]) -> None:
    assert torch.equal(train(0, StoSignSGD, options), reference(1, **options))


def train_all(rank: int) -> list[Tensor]:
    return [train(rank, StoSignSGD, options) for options in OPTIONS[1:]]


def test_three_workers_follow_the_formula_bit_for_bit() -> None:
    expected = [reference(3, **options) for options in OPTIONS[1:]]
    for replica in run_workers(train_all, 3):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(replica, expected, strict=True))


def test_a_tiny_bound_is_signsgd_or_signum() -> None:
    assert torch.equal(train(0, StoSignSGD, {"radius": 1e-30}), train(0, SignSGD, {}))
    momentum = {"momentum": 0.5}
    assert torch.equal(train(0, StoSignSGD, {"radius": 1e-30, **momentum}), train(0, Signum, momentum))


def test_each_group_has_its_own_momentum_and_radius() -> None:
    certain, average = nn.Parameter(torch.zeros(64)), nn.Parameter(torch.zeros(64))
    optimizer = StoSignSGD(
        [{"params": [certain]}, {"params": [average], "momentum": 0.5, "radius": 100.0}], 1.0, radius=1e-6
    )
    certain.grad = average.grad = torch.ones(64)
    optimizer.step()
    assert certain.tolist() == [-1.0] * 64
    assert set(average.tolist()) == {1.0, -1.0}
    assert not optimizer.state[certain]
    assert list(optimizer.state[average]) == ["momentum_buffer"]


def local_votes(rank: int) -> Tensor:
    weights = weights_at_zero()
    return steps(weights, StoSignSGD(weights, LR, radius=16.0, vote=LocalVote()), 0, 20)


def test_workers_with_the_same_gradients_and_local_votes_stay_alike() -> None:
    first, *others = run_workers(local_votes, 2)
    assert all(torch.equal(other, first) for other in others)


@pytest.mark.parametrize("options", [{"radius": 8.0}, {"momentum": 0.5, "radius_policy": "running"}], ids=str)
def test_resumes(options: dict[str, Any], tmp_path: Path) -> None:
    check_resumes(StoSignSGD, options, tmp_path)


@pytest.mark.parametrize("policy", ["fixed", "max", "rms", "running"])
def test_what_has_no_gradient_does_not_move(policy: str) -> None:
    check_unused_stay(StoSignSGD, {"radius": 1.0, "radius_policy": policy})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_learns_with_its_defaults(dtype: torch.dtype) -> None:
    check_learns(StoSignSGD, dtype)


def test_loaded_state_keeps_float32_for_16_bit_parameters() -> None:
    options = {"momentum": 0.5, "radius": 1.0, "radius_policy": "running"}
    weight = nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    optimizer = StoSignSGD([weight], **options)
    weight.grad = torch.full_like(weight, 0.3)
    optimizer.step()
    other = nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    twin = StoSignSGD([other])
    twin.load_state_dict(optimizer.state_dict())
    assert {value.dtype for value in twin.state[other].values()} == {torch.float32}
    assert (
        twin.state[other]["running_maximum"].tolist() == optimizer.state[weight]["momentum_buffer"].tolist()
    )


def test_clip_fraction_is_of_the_last_step_over_all_parameters() -> None:
    first, second = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(5))
    optimizer = StoSignSGD([first, second], radius=1.0)
    optimizer.counts_clipping = True
    first.grad, second.grad = torch.tensor([0.0, 1.0, -3.0]), torch.full((5,), 2.0)
    for _ in range(2):
        optimizer.step()
        assert optimizer.clip_fraction == 6 / 8
    first.grad = None
    second.grad.zero_()
    optimizer.step()
    assert optimizer.clip_fraction == 0


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("radius", 0, ValueError),
        ("radius", -0.1, ValueError),
        ("radius", None, TypeError),
        ("radius", True, TypeError),
        ("radius_policy", "fix", ValueError),
        ("momentum", 1.0, ValueError),
        ("momentum", -0.1, ValueError),
        ("momentum", "0.9", TypeError),
        ("weight_decay", -1.0, ValueError),
    ],
)
def test_bad_arguments_are_named(name: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^{name} must be"):
        StoSignSGD([nn.Parameter(torch.zeros(1))], **{name: value})  # type: ignore[arg-type]
    with pytest.raises(error, match=f"^{name} must be"):
        StoSignSGD([{"params": [nn.Parameter(torch.zeros(1))], name: value}])
