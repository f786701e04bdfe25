"""One radius for all workers, made of what each of them sent with its last votes."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_signvr.optimizers import SignOptimizer
from lightning_signvr.optimizers.rank_states import own_rank_state, with_rank_states
from lightning_signvr.optimizers.ssvrmv import SSVRMV
from lightning_signvr.optimizers.stosignsgd import StoSignSGD
from lightning_signvr.voting import LocalVote, MajorityVote, StochasticVote
from tests.optimizers.randomized import LR, steps, weights_at_zero
from tests.workers import run_workers

WORKERS = 3
NAN, INF = float("nan"), float("inf")
MAKERS = {
    "SSVRMV(max)": partial(SSVRMV, radius_policy="max"),
    "SSVRMV(option=2)": partial(SSVRMV, radius=8.0, radius_policy="fixed", option=2),
    "StoSignSGD(rms)": partial(StoSignSGD, momentum=0.5, radius=1.5, radius_policy="rms"),
}
OPTIMA = (1.0, 2.0, 10.0)
NOISE = {1e30: 4.0, 1e-30: 1.0, 0.0: 1.0}  # of a broken worker, and the shared magnitude after one step
VOTES = {"own": (False, MajorityVote), "shared": (True, MajorityVote), "drawn": (True, StochasticVote)}


def play(rank: int) -> dict[str, Any]:
    return {
        "by hand": {policy: by_hand(rank, policy) for policy in ("max", "rms")},
        "sent": sent(),
        "resumed": {name: resumed(rank, make) for name, make in MAKERS.items()},
        "reached": {name: reached(rank, *options) for name, options in VOTES.items()},
        "broken": {size: beside_a_broken_worker(rank, size) for size in NOISE},
    }


def by_hand(rank: int, policy: str) -> tuple[list[list[float]], list[float]]:
    """Magnitudes after each of three steps with chosen gradients, and the share that was clipped."""
    weights = [nn.Parameter(torch.zeros(size)) for size in (4, 3, 5, 0, 2)]
    groups = [{"params": weights[:4]}, {"params": weights[4:], "radius_policy": "running"}]
    optimizer = StoSignSGD(groups, 0.5, radius=0.5, radius_policy=policy)
    optimizer.counts_clipping = True
    magnitudes, clipped = [], []
    for step in range(3):
        gradients: list[list[float] | None] = [
            None if rank == 2 or step == 1 else [(1 + step) * (1 + rank) * number for number in (1, 2, 3, 4)],
            [[0.0, -3.0, 3.0], [0.0] * 3, [NAN, INF, 1e9]][rank],  # the last one abstains
            None,
            [],
            [0.0] * 2,
        ]
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = None if gradient is None else torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
        kept = [optimizer.state[weight].get("shared_magnitude", torch.tensor(NAN)) for weight in weights]
        assert all(magnitude.dtype == torch.float32 and magnitude.dim() == 0 for magnitude in kept)
        magnitudes.append([magnitude.item() for magnitude in kept])
        assert optimizer.clip_fraction is not None
        clipped.append(optimizer.clip_fraction.item())
    return magnitudes, clipped


def sent() -> list[Any]:
    """What travelled in the header, by policy."""
    results = []
    for options in (
        {"radius_policy": "max"},
        {"radius_policy": "rms", "shared_radius": True},
        {"radius_policy": "max", "shared_radius": False},
        {"radius_policy": "running"},
        {"radius_policy": "fixed", "shared_radius": True},
        {"radius_policy": "max", "vote": LocalVote()},
    ):
        weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        weight.grad = torch.tensor([1e300, 0.0], dtype=torch.float64)
        optimizer = StoSignSGD([weight], **options)  # type: ignore[arg-type]
        optimizer.step()
        assert optimizer.vote.last is not None
        results.append(
            (optimizer.vote.last.scales is not None, "shared_magnitude" in optimizer.state[weight])
        )
    return results


def resumed(rank: int, make: Any) -> tuple[Tensor, Tensor, list[float]]:
    """Twenty steps, the last ten once more from a gathered state; the magnitudes at the end."""
    weights = weights_at_zero()
    optimizer: SignOptimizer = make(weights, LR)
    steps(weights, optimizer, rank, 10)
    saved = [
        copy.deepcopy(weights),
        copy.deepcopy(with_rank_states(optimizer.state_dict(), torch.device("cpu"))),
    ]
    dist.broadcast_object_list(saved)
    twins = saved[0]
    twin: SignOptimizer = make(twins, lr=1.0)
    twin.load_state_dict(own_rank_state(saved[1], rank, WORKERS))
    ends = [steps(weights, optimizer, rank, 10, first=10), steps(twins, twin, rank, 10, first=10)]
    kept = [optimizer.state[weight].get("shared_magnitude", torch.tensor(NAN)).item() for weight in weights]
    return ends[0], ends[1], kept


def reached(rank: int, shared: bool, kind: type[MajorityVote]) -> float:
    """Where ``sum_j (x - a_j)^2 / 2`` leads many copies of x, from its minimizer."""
    weight = nn.Parameter(torch.full((1024,), sum(OPTIMA) / 3))
    optimizer = StoSignSGD([weight], radius=1.0, radius_policy="max", shared_radius=shared, vote=kind())
    for step in range(100):
        optimizer.param_groups[0]["lr"] = 0.2 if step < 60 else 0.1
        weight.grad = weight.detach() - OPTIMA[rank]
        optimizer.step()
    return weight.mean().item()


def beside_a_broken_worker(rank: int, size: float) -> tuple[float, float]:
    """The shared magnitude after a step, and where many copies of x end up whose optimum is 1."""
    weight = nn.Parameter(torch.zeros(1024))
    optimizer = StoSignSGD([weight], radius=1.0, radius_policy="max")
    generator = torch.Generator().manual_seed(0)
    magnitudes = []
    for step in range(100):
        optimizer.param_groups[0]["lr"] = 0.1 if step < 80 else 0.02
        signs = torch.randint(2, weight.shape, generator=generator) * 2.0 - 1
        weight.grad = size * signs if rank == 2 else weight.detach() - 1
        optimizer.step()
        magnitudes.append(optimizer.state[weight]["shared_magnitude"].item())
    return magnitudes[0], weight.mean().item()


@pytest.fixture(scope="module")
def played() -> list[dict[str, Any]]:
    return run_workers(play, WORKERS)


def test_magnitudes_are_of_those_that_have_some_and_the_last_that_there_were(
    played: list[dict[str, Any]],
) -> None:
    mean_squares = [[(7.5 + 30) / 2, 6], [(7.5 + 30) / 2, 6], [9 * (7.5 + 30) / 2, 6]]
    for result in played:
        magnitudes, _ = result["by hand"]["max"]
        assert [seen[:2] for seen in magnitudes] == [[8, 3], [8, 3], [24, 3]]
        magnitudes, _ = result["by hand"]["rms"]
        for seen, expected in zip(magnitudes, mean_squares, strict=True):
            assert [number**2 for number in seen[:2]] == pytest.approx(expected)
            assert all(map(math.isnan, seen[2:]))


def test_clipped_is_what_is_beyond_the_radius_of_the_last_step(played: list[dict[str, Any]]) -> None:
    expected = [[4 / 9, 2 / 5, 5 / 9], [2 / 9, 0, 4 / 9], [0, 0, 0]]  # in the first step beyond their own
    for result, shares in zip(played, expected, strict=True):
        assert result["by hand"]["max"][1] == pytest.approx(shares)


def test_magnitudes_are_sent_only_where_they_are_shared(played: list[dict[str, Any]]) -> None:
    for result in played:
        assert result["sent"] == [(True, True)] * 2 + [(False, False)] * 4


@pytest.mark.parametrize("name", list(MAKERS))
def test_a_resumed_run_goes_on_with_the_same_bits(name: str, played: list[dict[str, Any]]) -> None:
    results = [result["resumed"][name] for result in played]
    for end, twin_end, magnitudes in results:
        assert torch.equal(end, twin_end)
        assert torch.equal(end, results[0][0])
        assert magnitudes == pytest.approx(results[0][2], rel=0, abs=0, nan_ok=True)
        assert any(map(math.isnan, magnitudes)) == (name == "SSVRMV(option=2)")


def test_a_shared_radius_keeps_near_the_mean_where_each_ones_own_leads_to_the_median(
    played: list[dict[str, Any]],
) -> None:
    """The toy of Chen et al. in one dimension: the workers' optima are 1, 2 and 10, their mean 4.33.

    With a radius of its own, a worker's sign is certain: the median. With the largest ``10 - x`` as the
    radius of all, the majority's bias vanishes above 4, where ``m1 + m2 + m3 = m1 m2 m3`` for one x; a drawn
    outcome has none.
    """
    for reached in (result["reached"] for result in played):
        assert reached == played[0]["reached"]
        assert reached["own"] == pytest.approx(2, abs=0.11)
        assert 4.0 < reached["shared"] < 4.22
        assert reached["drawn"] == pytest.approx(13 / 3, abs=0.1)


@pytest.mark.parametrize("size", NOISE)
def test_noise_of_a_broken_worker_does_not_make_coins_of_the_others(
    size: float, played: list[dict[str, Any]]
) -> None:
    for result in played:
        assert result["broken"][size] == played[0]["broken"][size]
        magnitude, end = result["broken"][size]
        assert magnitude == NOISE[size]
        assert 0.6 < end < 1.1  # of coins it would be 0


def test_a_lone_worker_has_nothing_to_share() -> None:
    weight = nn.Parameter(torch.zeros(2))
    optimizer = StoSignSGD([weight], lr=1.0, radius=1.0, radius_policy="max")
    optimizer.counts_clipping = True
    for size in (1.0, 100.0):
        weight.grad = torch.tensor([size, -size])
        optimizer.step()
        assert optimizer.clip_fraction == 0  # of this step, not the last
    assert weight.tolist() == [-2, 2]


@pytest.mark.parametrize("kind", [SSVRMV, StoSignSGD])
def test_a_running_radius_cannot_be_shared(kind: Any) -> None:
    weight = nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match='shared_radius must be None or False with radius_policy="running"'):
        kind([weight], radius_policy="running", shared_radius=True)
    kind([{"params": [weight], "radius_policy": "running"}], radius_policy="max")
