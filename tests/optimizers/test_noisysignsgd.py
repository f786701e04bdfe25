"""Noisy signs against their formula, and what noise before the sign does to a vote."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_signvr import SignSGD, Signum
from lightning_signvr.optimizers.noisysignsgd import NoisySignSGD
from lightning_signvr.optimizers.stosignsgd import StoSignSGD
from tests.optimizers.problems import SIZE, gradient, majority
from tests.optimizers.randomized import (
    LR,
    check_learns,
    check_resumes,
    check_unused_stay,
    train,
    uniform,
)
from tests.workers import run_workers

STEPS = 50
OPTIONS: list[dict[str, Any]] = [
    {"sigma": 4.0},
    {"sigma": 4.0, "noise": "uniform", "weight_decay": 0.5},
    {"sigma": 2.0, "momentum": 0.5},
    {"sigma": 8.0, "noise": "uniform", "momentum": 0.75},
]


def reference(
    workers: int, sigma: float, noise: str = "gaussian", momentum: float = 0.0, weight_decay: float = 0.0
) -> Tensor:
    """``m = momentum m + (1 - momentum) g``; majority of ``sign(m + sigma xi)``; step."""
    normal = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)
    point = torch.zeros(SIZE, dtype=torch.float64)
    averages = [torch.zeros(SIZE, dtype=torch.float64)] * workers
    for step in range(STEPS):
        ballots = []
        for rank in range(workers):
            averages[rank] = m = momentum * averages[rank] + (1 - momentum) * gradient(point, rank, step)
            drawn = uniform(rank, step)
            noises = normal.icdf((drawn + 1) / 2) if noise == "gaussian" else drawn
            ballots.append(torch.where(m == 0, 0.0, (m + sigma * noises).sign()))
        point = (1 - LR * weight_decay) * point - LR * majority(ballots)
    return point


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_one_worker_follows_the_formula_bit_for_bit(options: dict[str, Any]) -> None:
    assert torch.equal(train(0, NoisySignSGD, options), reference(1, **options))


def train_all(rank: int) -> list[Tensor]:
    return [train(rank, NoisySignSGD, options) for options in OPTIONS[1:3]]


def test_three_workers_follow_the_formula_bit_for_bit() -> None:
    expected = [reference(3, **options) for options in OPTIONS[1:3]]
    for replica in run_workers(train_all, 3):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(replica, expected, strict=True))


def test_uniform_noise_is_stosignsgd() -> None:
    noisy = train(0, NoisySignSGD, {"sigma": 4.0, "noise": "uniform"})
    assert torch.equal(noisy, train(0, StoSignSGD, {"radius": 4.0}))


@pytest.mark.parametrize("noise", ["gaussian", "uniform"])
def test_tiny_noise_is_signsgd_or_signum(noise: str) -> None:
    tiny = {"sigma": 1e-30, "noise": noise}
    assert torch.equal(train(0, NoisySignSGD, tiny), train(0, SignSGD, {}))
    momentum = {"momentum": 0.5}
    assert torch.equal(train(0, NoisySignSGD, {**tiny, **momentum}), train(0, Signum, momentum))


# -- the median and the mean: three workers want x = 1, 2 and 10 ------------------------------------

COPIES = 512


def descend(rank: int) -> list[float]:
    """Where votes with growing noise stop, as a mean of independent runs and of the last steps."""
    weights = [nn.Parameter(torch.full((COPIES,), 4.0)) for _ in range(3)]
    groups = [{"params": [w], "sigma": sigma} for w, sigma in zip(weights, (1e-6, 5.0, 20.0), strict=True)]
    optimizer = NoisySignSGD(groups, lr=0.25)
    places = []
    for _ in range(120):
        for weight in weights:
            weight.grad = weight.detach() - (1.0, 2.0, 10.0)[rank]
        optimizer.step()
        places.append([weight.mean().item() for weight in weights])
    return torch.tensor(places[-40:]).mean(0).tolist()


def test_noise_moves_the_vote_from_the_median_to_the_mean() -> None:
    median, between, mean = run_workers(descend, 3)[0]
    assert median == pytest.approx(2.0, abs=0.25)
    # where the expected vote is 0: means e_j = erf((x - a_j) / (sigma sqrt 2)), sum e = product e
    for place, sigma in ((between, 5.0), (mean, 20.0)):
        means = [math.erf((place - a) / (sigma * math.sqrt(2))) for a in (1.0, 2.0, 10.0)]
        assert sum(means) == pytest.approx(math.prod(means), abs=0.03)
    assert median < between < mean
    assert abs(mean - 13 / 3) < 0.25


# -- conventions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"sigma": 4.0}, {"momentum": 0.5, "noise": "uniform"}], ids=str)
def test_resumes(options: dict[str, Any], tmp_path: Path) -> None:
    check_resumes(NoisySignSGD, options, tmp_path)


@pytest.mark.parametrize("noise", ["gaussian", "uniform"])
def test_what_has_no_gradient_does_not_move(noise: str) -> None:
    check_unused_stay(NoisySignSGD, {"sigma": 0.25, "noise": noise})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_learns_with_its_defaults(dtype: torch.dtype) -> None:
    check_learns(NoisySignSGD, dtype)


def test_clip_fraction_exists_for_uniform_noise_only() -> None:
    for noise, expected in (("uniform", 0.5), ("gaussian", None)):
        weight = nn.Parameter(torch.zeros(4))
        optimizer = NoisySignSGD([weight], sigma=1.0, noise=noise)  # type: ignore[arg-type]
        optimizer.counts_clipping = True
        weight.grad = torch.tensor([0.5, -1.0, 2.0, -3.0])
        optimizer.step()
        assert optimizer.clip_fraction == expected


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("sigma", 0.0, ValueError),
        ("sigma", -1.0, ValueError),
        ("sigma", float("nan"), ValueError),
        ("sigma", "1", TypeError),
        ("noise", "laplace", ValueError),
        ("momentum", 1.0, ValueError),
        ("lr", float("inf"), ValueError),
    ],
)
def test_bad_arguments_are_named(name: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^{name} must be"):
        NoisySignSGD([nn.Parameter(torch.zeros(1))], **{name: value})  # type: ignore[arg-type]
