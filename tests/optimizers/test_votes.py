"""Which votes the optimizers take: a majority, a mean, a random sign, or scaled signs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_signvr import LocalVote, MajorityVote, SignSGD, Signum
from lightning_signvr.optimizers import SSVR, DVRSign, EFLion, EFSignum, Lion, SignOptimizer
from lightning_signvr.signs import random_uniform
from lightning_signvr.voting import MeanVote, ScaledMeanVote, StochasticVote
from lightning_signvr.voting.rules import SERVER_STREAM
from tests.optimizers.problems import SIZE, gradient
from tests.workers import run_workers

STEPS, LR, SEED, WORKERS = 50, 1 / 16, 9, 3


def mean(signs: Tensor, step: int) -> Tensor:
    return (signs.sum(0).float() / WORKERS).double()


def random_sign(signs: Tensor, step: int) -> Tensor:
    """+ with probability ``(1 + mean) / 2``, by the documented numbers; 0 where nobody votes."""
    noise = random_uniform(SEED, step, SERVER_STREAM, 0, SIZE).double()
    return torch.where(signs.any(0), (signs.sum(0) + WORKERS * noise).sign(), 0.0)


VOTES: list[tuple[type[MajorityVote], Callable[[Tensor, int], Tensor]]] = [
    (MeanVote, mean),
    (StochasticVote, random_sign),
]


def reference(vote: Callable[[Tensor, int], Tensor]) -> Tensor:
    """``m = m / 2 + g / 2``; ``x = x - lr * vote(signs of all m)``."""
    point = torch.zeros(SIZE, dtype=torch.float64)
    averages = torch.zeros(WORKERS, SIZE, dtype=torch.float64)
    for step in range(STEPS):
        averages = averages / 2 + torch.stack([gradient(point, j, step) for j in range(WORKERS)]) / 2
        point = point - LR * vote(averages.sign(), step)
    return point


def train(rank: int) -> list[Tensor]:
    results = []
    for kind, _ in VOTES:
        weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
        optimizer = Signum([weight], LR, momentum=0.5, vote=kind(seed=SEED))
        for step in range(STEPS):
            weight.grad = gradient(weight.detach(), rank, step)
            optimizer.step()
        results.append(weight.detach())
    return results


def test_signum_with_a_mean_and_with_random_signs() -> None:
    expected = [reference(vote) for _, vote in VOTES]
    for replica in run_workers(train, WORKERS):
        assert all(map(torch.equal, replica, expected))


def test_a_lone_workers_votes_are_all_the_same() -> None:
    """One sign is its own majority, mean and draw."""
    ends = []
    for vote in (MajorityVote(), MeanVote(), StochasticVote(), LocalVote()):
        weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
        optimizer = Signum([weight], LR, vote=vote)
        for step in range(5):
            weight.grad = gradient(weight.detach(), 0, step)
            optimizer.step()
        ends.append(weight)
    assert all(torch.equal(end, ends[0]) for end in ends)


@pytest.mark.parametrize("kind", [SignSGD, Signum, Lion, SSVR])
def test_scaled_votes_are_for_methods_with_scales(kind: type[Any]) -> None:
    with pytest.raises(
        TypeError, match=f"^vote must not be a ScaledMeanVote for {kind.__name__}.*use MeanVote"
    ):
        kind([nn.Parameter(torch.zeros(3))], vote=ScaledMeanVote())


@pytest.mark.parametrize("kind", [EFSignum, EFLion, DVRSign])
@pytest.mark.parametrize("vote", [MajorityVote(), MeanVote(), StochasticVote(), LocalVote()], ids=repr)
def test_methods_with_scales_take_no_other_vote(kind: type[SignOptimizer], vote: Any) -> None:
    with pytest.raises(TypeError, match=f"^vote must be a ScaledMeanVote or None for {kind.__name__}"):
        kind([nn.Parameter(torch.zeros(3))], vote=vote)  # type: ignore[call-arg]
