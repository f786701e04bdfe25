"""What the owner of a shard decides from the ballots that it received."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_signvr.signs import (
    Counts,
    add_signs_,
    count_planes,
    majority,
    pack_signs,
    pack_signs_and_abstentions,
    packed_size,
    random_bytes,
    random_uniform,
)
from lightning_signvr.voting.layout import Layout
from lightning_signvr.voting.rules import SERVER_STREAM, TIE_STREAM, TieRule


@dataclass(frozen=True)
class Piece:
    """The part of one tensor that lies in a shard.

    Attributes:
        index: of the tensor.
        part: its bytes in the shard.
        first: its first element in the tensor, a multiple of 8.
        numel: elements; fewer than bits at the tensor's end.
    """

    index: int
    part: slice
    first: int
    numel: int


@dataclass(frozen=True)
class ShardBallots:
    """All workers' votes on one shard.

    Attributes:
        votes: uint8, ``[workers, bytes]``, their sign bits.
        absent: uint8, same shape, where they abstain; None for nowhere.
        scales: float32, ``[workers, tensors]``, their number for each tensor; None for plain votes.
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

    def pieces(self) -> Iterator[Piece]:
        """Of each tensor that lies in the shard."""
        stop = self.start + self.votes.shape[1]
        for index, numel in enumerate(self.layout.numels):
            whole = self.layout.part(index)
            begin, end = max(whole.start, self.start), min(whole.stop, stop)
            if begin < end:
                first = (begin - whole.start) * 8
                inside = min((end - begin) * 8, numel - first)
                yield Piece(index, slice(begin - self.start, end - self.start), first, inside)

    def total(self, piece: Piece, factors: list[float]) -> Tensor:
        """``sum_j factor_j sign_j`` on a piece, float32; a worker that abstains adds 0."""
        total = torch.zeros((piece.part.stop - piece.part.start) * 8, device=self.votes.device)
        for worker, factor in enumerate(factors):
            zeros = None if self.absent is None else self.absent[worker, piece.part]
            add_signs_(total, self.votes[worker, piece.part], factor, zeros=zeros)
        return total[: piece.numel]


@dataclass
class Decided:
    """Outcome on a shard.

    Attributes:
        negative: uint8, ``[bytes]``, 1 for -1.
        undecided: uint8, ``[bytes]``, 1 where nothing moves; None for nowhere.
        counts: of the votes, padding included.
        planes: uint8, ``[k, bytes]``, what is sent in place of ``negative``; None to send that.
        unsettled: as ``undecided`` for those who look closely, where ``planes`` say it; None for that one.
        scales: per tensor, the factor of the signs on this shard; None for none.
    """

    negative: Tensor
    undecided: Tensor | None
    counts: Counts
    planes: Tensor | None = None
    unsettled: Tensor | None = None
    scales: list[float] | None = None


class Decision(ABC):
    """How an owner decides.

    Attributes:
        scaled_answer: whether the outcome comes with a factor per tensor and shard.
        average: a collective of all owners that takes the place of the votes' mean; None for none.
        splits: whether it is one bit per coordinate that depends on its votes and its place alone, so that
            buckets can be decided one by one and by anyone.
    """

    splits: bool = False
    scaled_answer: bool = False
    average: Callable[[ShardBallots], Tensor] | None = None

    def planes(self, workers: int, abstentions: bool) -> int:
        """Bits per parameter on the way back, where there may be abstentions or not."""
        return 1

    @abstractmethod
    def __call__(self, ballots: ShardBallots) -> Decided:
        """Decide on a shard."""


@dataclass(frozen=True)
class ByMajority(Decision):
    """The sign that more workers voted for; nothing where nobody voted; ties by their rule."""

    ties: TieRule
    seed: int
    splits = True

    def __call__(self, ballots: ShardBallots) -> Decided:
        tally = majority(ballots.votes, ballots.absent)
        undecided = tally.silent
        if tally.tied is not None and tally.counts.ties:
            if self.ties == "random":
                stop = ballots.start + ballots.votes.shape[1]
                device = tally.negative.device
                coins = random_bytes(self.seed, ballots.step, TIE_STREAM, ballots.start, stop, device)
                tally.negative |= tally.tied & coins
            elif self.ties == "zero":
                undecided = tally.tied if undecided is None else undecided | tally.tied
        return Decided(tally.negative, undecided, tally.counts)


@dataclass(frozen=True)
class ByStochasticSign(Decision):
    """+ with probability ``(1 + mean) / 2``, the mean over all workers; nothing where nobody voted."""

    seed: int
    splits = True

    def __call__(self, ballots: ShardBallots) -> Decided:
        tally = majority(ballots.votes, ballots.absent)
        workers = ballots.votes.shape[0]
        negative = torch.zeros_like(tally.negative)
        for piece in ballots.pieces():
            key = self.seed, ballots.step, SERVER_STREAM, piece.index, piece.numel
            noise = random_uniform(*key, device=negative.device, start=piece.first)
            pack_signs(
                ballots.total(piece, [1.0] * workers).add_(noise, alpha=workers),
                negative[piece.part],
            )
        return Decided(negative, tally.silent, tally.counts)


@dataclass(frozen=True)
class ByMean(Decision):
    """How many voted for +, as bit planes; with abstentions, that and how many did not vote for -."""

    def planes(self, workers: int, abstentions: bool) -> int:
        return (2 * workers if abstentions else workers).bit_length()

    def __call__(self, ballots: ShardBallots) -> Decided:
        tally = majority(ballots.votes, ballots.absent)
        if ballots.absent is None:
            planes = count_planes(~ballots.votes)
        else:
            rows = [~(ballots.votes | ballots.absent), ~ballots.votes | ballots.absent]
            planes = count_planes(torch.cat(rows))
        unsettled = tally.silent
        if tally.tied is not None:
            unsettled = tally.tied if unsettled is None else unsettled | tally.tied
        return Decided(tally.negative, None, tally.counts, planes, unsettled)


Server = Callable[[int, slice, int, Tensor], Tensor | tuple[Tensor, float]]
"""``server(index, elements, size, mean)``: the numbers whose signs go back to the workers.

``mean`` is the mean over the workers of their scaled signs on a part of tensor ``index``; ``elements`` is
where that part lies among the ``size`` elements of the owner's shard, for a state that the owner keeps.
With ``scaled_answer`` it returns the numbers and the factor of their signs.
"""


@dataclass(frozen=True)
class ByScaledMean(Decision):
    """The sign of what ``server`` makes of ``mean_j scale_j sign_j``; a worker that abstains adds 0.

    With ``average``, which returns a number for each element of the shard, the server gets that mean.
    """

    server: Server
    scaled_answer: bool = False
    average: Callable[[ShardBallots], Tensor] | None = None

    def __call__(self, ballots: ShardBallots) -> Decided:
        assert ballots.scales is not None
        workers, size = ballots.votes.shape
        means = None if self.average is None else self.average(ballots)
        negative = torch.zeros(size, dtype=torch.uint8, device=ballots.votes.device)
        undecided = torch.zeros_like(negative)
        scales = [0.0] * len(ballots.layout.numels)
        for piece in ballots.pieces():
            elements = slice(piece.part.start * 8, piece.part.start * 8 + piece.numel)
            if means is None:
                factors = [scale / workers for scale in ballots.scales[:, piece.index].tolist()]
                mean = ballots.total(piece, factors)
            else:
                mean = means[elements]
            answer = self.server(piece.index, elements, size * 8, mean)
            if isinstance(answer, tuple):
                answer, scales[piece.index] = answer
            used = slice(piece.part.start, piece.part.start + packed_size(piece.numel))
            pack_signs_and_abstentions(answer, negative[used], undecided[used])
        counts = majority(ballots.votes, ballots.absent).counts
        return Decided(negative, undecided, counts, scales=scales if self.scaled_answer else None)
