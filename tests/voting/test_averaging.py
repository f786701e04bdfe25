"""A mean in full precision at the owners, beside a vote."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lightning_signvr.voting import ScaledMeanVote
from tests.workers import WorkerError, run_workers

SHAPES = [(5, 7), (3,), (1,), (), (40,), (0,)]
LARGE = 1_000_003


def numbers(rank: int) -> list[Tensor | None]:
    """Tensors of several dtypes; rank 1 lacks the last but one, and nobody has the second."""
    generator = torch.Generator().manual_seed(rank)
    tensors: list[Tensor | None] = [torch.randn(shape, generator=generator) for shape in SHAPES]
    tensors[0] = tensors[0].double().t().contiguous().t()  # type: ignore[union-attr]
    tensors[1] = None
    if rank == 1:
        tensors[4] = None
    return tensors


class Owner:
    """A server that keeps the means that it is given, and answers with their signs."""

    def __init__(self) -> None:
        self.means: dict[tuple[int, int], list[float]] = {}

    def __call__(self, index: int, elements: slice, size: int, mean: Tensor) -> Tensor:
        self.means[index, elements.start] = mean.tolist()
        return mean


def average(rank: int) -> tuple[dict[tuple[int, int], list[float]], list[list[float]], list[bool]]:
    mine, like = numbers(rank), [torch.zeros(shape) for shape in SHAPES]
    owner, vote = Owner(), ScaledMeanVote()
    votes = vote.cast(mine, [1.0] * len(like), owner, like, exact=mine)
    return owner.means, [votes.signs(k).flatten().tolist() for k in range(len(like))], list(votes.present)


def means(workers: int) -> list[Tensor]:
    """Sums in the order of the ranks, in float32."""
    totals = [torch.zeros(shape) for shape in SHAPES]
    for rank in range(workers):
        for total, tensor in zip(totals, numbers(rank), strict=True):
            if tensor is not None:
                total += tensor.float()
    return [(total / workers).flatten() for total in totals]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_owners_get_the_mean_to_the_last_bit_and_all_get_its_signs(workers: int) -> None:
    results = run_workers(average, workers) if workers > 1 else [average(0)]
    expected = means(workers)
    owned: list[list[float]] = [[] for _ in SHAPES]
    for kept, _, _ in results:
        for (index, _), mean in kept.items():
            owned[index] += mean
    assert owned == [mean.tolist() for mean in expected]
    for _, signs, present in results:
        assert present == [True, False, True, True, True, True]
        assert signs[2:] == [mean.sign().tolist() for mean in expected[2:]]


def bits(rank: int) -> list[float]:
    """Bits sent per parameter, with and without exact numbers."""
    vote, direction = ScaledMeanVote(), torch.ones(LARGE)
    sent = [0]
    for exact in (None, [direction], None):
        vote.cast([direction], [1.0], echo, exact=exact)
        sent.append(vote.traffic.bytes_sent)
    return [8 * (after - before) / LARGE for before, after in pairwise(sent)]


def echo(index: int, elements: slice, size: int, mean: Tensor) -> Tensor:
    return mean


@pytest.mark.parametrize("workers", [2, 3])
def test_it_costs_32_bits_more_on_the_way_up(workers: int) -> None:
    share = (workers - 1) / workers
    for before, exact, after in run_workers(bits, workers):
        assert (before, after) == pytest.approx((2 * share, 2 * share), rel=0.01)
        assert exact == pytest.approx(34 * share, rel=0.01)


def rank_one_alone(rank: int) -> None:
    direction = torch.ones(20)
    ScaledMeanVote().cast([direction], [1.0], Owner(), exact=[direction] if rank else None)


def test_all_ranks_send_exact_numbers_or_none() -> None:
    with pytest.raises(WorkerError) as caught:
        run_workers(rank_one_alone, 2, timeout=20)
    message = str(caught.value)
    assert "rank 1 sends a gradient in full precision in this step and this rank does not" in message
    assert "rank 0 does not send a gradient in full precision in this step" in message
    assert "use the same period" in message


@pytest.mark.parametrize("sizes", [(), (1,), (20, 1)], ids=["none", "small", "more"])
def test_numbers_of_another_size_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"exact has tensors of .* and the vote is on \[20\]"):
        ScaledMeanVote().cast([torch.ones(20)], [1.0], Owner(), exact=[torch.ones(size) for size in sizes])
