"""SSDM against its formula: norm-scaled stochastic signs of momentum, and their mean."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_signvr import MajorityVote
from lightning_signvr.optimizers.ssdm import SSDM
from lightning_signvr.voting import MeanVote, ScaledMeanVote
from tests.optimizers.problems import SIZE, gradient
from tests.optimizers.randomized import (
    LR,
    PARTS,
    SEED,
    check_resumes,
    check_unused_stay,
    steps,
    stochastic_sign,
    weights_at_zero,
)
from tests.workers import run_workers

STEPS = 50
OPTIONS: list[dict[str, Any]] = [
    {"momentum": 0.75},
    {"momentum": 0.0, "weight_decay": 0.5},
    {"momentum": 0.5, "maximize": True},
]
LARGE = 1 << 16


def reference(workers: int, momentum: float, weight_decay: float = 0.0, maximize: bool = False) -> Tensor:
    """``m = momentum m + (1 - momentum) g``; mean of ``P[+1] = 1/2 + m_i / (2 ||m||_2)``; step."""
    point = torch.zeros(SIZE, dtype=torch.float64)
    averages = [torch.zeros_like(point) for _ in range(workers)]
    for step in range(STEPS):
        total = torch.zeros_like(point)
        for rank in range(workers):
            averages[rank] = m = momentum * averages[rank] + (1 - momentum) * gradient(point, rank, step)
            norms = torch.cat([part.norm().expand_as(part) for part in m.split(PARTS)])
            total += stochastic_sign(m, norms, rank, step)
        mean = (total.float() / workers).double()
        point = (1 - LR * weight_decay) * point + (LR if maximize else -LR) * mean
    return point


def train(rank: int, options: dict[str, Any]) -> Tensor:
    weights = weights_at_zero()
    return steps(weights, SSDM(weights, LR, vote=MeanVote(seed=SEED), **options), rank, STEPS)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_one_worker_follows_the_formula_bit_for_bit(options: dict[str, Any]) -> None:
    assert torch.equal(train(0, options), reference(1, **options))


def work(rank: int) -> tuple[list[Tensor], int]:
    weight = nn.Parameter(torch.zeros(LARGE))
    weight.grad = torch.randn(LARGE, generator=torch.Generator().manual_seed(rank))
    optimizer = SSDM([weight])
    optimizer.step()
    return [train(rank, options) for options in OPTIONS], optimizer.vote.traffic.bytes_sent


def test_three_workers_follow_the_formula_and_send_three_bits() -> None:
    expected = [reference(3, **options) for options in OPTIONS]
    for replica, sent in run_workers(work, 3):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(replica, expected, strict=True))
        bits = 8 * sent / LARGE
        assert bits == pytest.approx(2 / 3 * (1 + 2), rel=0.05)  # log2(3 + 1) = 2 down


def test_expected_sign_is_the_unit_direction() -> None:
    weight = nn.Parameter(torch.zeros(4))
    optimizer = SSDM([weight], lr=1.0, momentum=0.0)
    weight.grad = torch.tensor([-3.0, 2.0, 1.0, 0.0])
    count = 4000
    for _ in range(count):
        optimizer.step()
    expected = -weight.grad / weight.grad.norm()
    torch.testing.assert_close(weight.detach() / count, expected, rtol=0, atol=4 / math.sqrt(count))
    assert weight[3] == 0


def test_resumes(tmp_path: Path) -> None:
    check_resumes(SSDM, {"momentum": 0.5}, tmp_path)


def test_what_has_no_gradient_does_not_move() -> None:
    check_unused_stay(SSDM, {})


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("momentum", 1.0, ValueError),
        ("weight_decay", -1.0, ValueError),
        ("vote", MajorityVote(), TypeError),
        ("vote", ScaledMeanVote(), TypeError),
    ],
)
def test_bad_arguments_are_named(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^{name} must be"):
        SSDM([nn.Parameter(torch.zeros(1))], **{name: value})
