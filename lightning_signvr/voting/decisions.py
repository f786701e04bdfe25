"""What the owner of a shard decides from the ballots that it received."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_signvr.signs import (
    Counts,
    add_signs_,
    majority,
    pack_signs_and_abstentions,
    packed_size,
    random_bytes,
)
from lightning_signvr.voting.layout import Layout
from lightning_signvr.voting.rules import TIE_STREAM, TieRule


@dataclass(frozen=True)
class ShardBallots:
    """All workers' votes on one shard.

    Attributes:
        votes: uint8, ``[workers, bytes]``, their sign bits.
        absent: uint8, same shape, where they abstain; None for nowhere.
        scales: float32, ``[workers, tensors]``, their factor of each tensor; None for plain votes.
        layout: of the whole plane.
        start: first byte of the shard in it.
        step: number of the vote.
    """

    votes: Tensor
    absent: Tensor | None
    scales: Tensor | None
    layout: Layout
    start: int
    step: int

    def pieces(self) -> Iterator[tuple[int, slice]]:
        """Index of each tensor that lies in the shard, and its bytes there."""
        stop = self.start + self.votes.shape[1]
        for index in range(len(self.layout.numels)):
            part = self.layout.part(index)
            first, last = max(part.start, self.start), min(part.stop, stop)
            if first < last:
                yield index, slice(first - self.start, last - self.start)


@dataclass
class Decided:
    """Outcome on a shard.

    Attributes:
        negative: uint8, ``[bytes]``, 1 for -1.
        undecided: uint8, ``[bytes]``, 1 where nothing moves; None for nowhere.
        counts: of the votes, padding included.
    """

    negative: Tensor
    undecided: Tensor | None
    counts: Counts


Decision = Callable[[ShardBallots], Decided]


def decide_by_majority(ballots: ShardBallots, ties: TieRule, seed: int) -> Decided:
    """The sign that more workers voted for; nothing where nobody voted; ties by their rule."""
    tally = majority(ballots.votes, ballots.absent)
    undecided = tally.silent
    if tally.tied is not None and tally.counts.ties:
        if ties == "random":
            stop = ballots.start + ballots.votes.shape[1]
            device = tally.negative.device
            coins = random_bytes(seed, ballots.step, TIE_STREAM, ballots.start, stop, device)
            tally.negative |= tally.tied & coins
        elif ties == "zero":
            undecided = tally.tied if undecided is None else undecided | tally.tied
    return Decided(tally.negative, undecided, tally.counts)


Server = Callable[[int, slice, int, Tensor], Tensor]
"""``server(index, elements, size, mean)``: the numbers whose signs go back to the workers.

``mean`` is the mean over the workers of their scaled signs on a part of tensor ``index``; ``elements`` is
where that part lies among the ``size`` elements of the owner's shard, for a state that the owner keeps.
"""


def decide_by_scaled_mean(ballots: ShardBallots, server: Server) -> Decided:
    """The sign of what ``server`` makes of ``mean_j scale_j sign_j``; a worker that abstains adds 0."""
    assert ballots.scales is not None
    workers, size = ballots.votes.shape
    device = ballots.votes.device
    negative = torch.zeros(size, dtype=torch.uint8, device=device)
    undecided = torch.zeros_like(negative)
    for index, part in ballots.pieces():
        elements = slice(part.start * 8, part.stop * 8)
        mean = torch.zeros(elements.stop - elements.start, device=device)
        for worker in range(workers):
            zeros = None if ballots.absent is None else ballots.absent[worker, part]
            scale = float(ballots.scales[worker, index]) / workers
            add_signs_(mean, ballots.votes[worker, part], scale, zeros=zeros)
        inside = _elements_inside(ballots, index, part)
        voted = server(index, slice(elements.start, elements.start + inside), size * 8, mean[:inside])
        used = slice(part.start, part.start + packed_size(inside))
        pack_signs_and_abstentions(voted, negative[used], undecided[used])
    return Decided(negative, undecided, majority(ballots.votes, ballots.absent).counts)


def _elements_inside(ballots: ShardBallots, index: int, part: slice) -> int:
    """Elements of tensor ``index`` in these bytes of the shard: less than 8 per byte at its end."""
    before = (part.start + ballots.start - ballots.layout.offsets[index]) * 8
    inside: int = min((part.stop - part.start) * 8, ballots.layout.numels[index] - before)
    return inside
