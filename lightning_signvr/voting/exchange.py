"""How a bucket of votes travels: what its ways have in common.

:mod:`lightning_signvr.voting.two_phase` and :mod:`lightning_signvr.voting.one_phase` are the ways. Both
are started and finished piece by piece, so that several buckets can be under way; see
:mod:`lightning_signvr.voting.pipeline`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_signvr.signs import Counts
from lightning_signvr.voting.buckets import Bucket
from lightning_signvr.voting.buffers import Buffers
from lightning_signvr.voting.channel import PlaneChannel
from lightning_signvr.voting.decisions import Decided, Decision, ShardBallots
from lightning_signvr.voting.details import VoteDetails
from lightning_signvr.voting.header import BallotHeader
from lightning_signvr.voting.layout import Layout
from lightning_signvr.voting.pending import Pending
from lightning_signvr.voting.traffic import Traffic


@dataclass(frozen=True)
class Terms:
    """What holds for all buckets of one vote, and is the same on all ranks but for ``traffic``."""

    step: int
    decide: Decision
    detailed: bool
    group: dist.ProcessGroup | None
    traffic: Traffic

    @property
    def exact(self) -> bool:
        return self.decide.average is not None


@dataclass
class Ballots:
    """What a rank votes in one bucket.

    Attributes:
        negative: uint8, ``[size]``, its sign bits.
        abstaining: uint8, ``[size]``, where it does not vote; None for nowhere.
        missing: for each tensor of the bucket, whether it has no direction at all.
        scales: for each of them, the factor of its signs; None for plain votes.
        nonfinite: see :class:`~lightning_signvr.voting.header.BallotHeader`.
    """

    negative: Tensor
    abstaining: Tensor | None
    missing: Sequence[bool]
    scales: Sequence[float] | None
    nonfinite: int = 0


@dataclass
class Outcome:
    """What came out of a vote, or of one bucket of it; see :class:`VotedSigns` and its subclasses.

    Attributes:
        nonfinite: what the header of each voter says.
    """

    present: list[bool]
    counts: Counts = field(default_factory=Counts)
    scales: Tensor | None = None
    details: VoteDetails | None = None
    abstentions: bool = False
    answers: Tensor | None = None
    shard: int = 0
    nonfinite: Sequence[int] = ()


class Exchange(ABC):
    """Buffers and steps of one bucket: :meth:`send`, :meth:`decide`, :meth:`receive`, in that order.

    Args:
        layout: of the whole plane.
        bucket: the part of it.
        digest: of all that the ranks must agree on.
        scaled: whether scales travel with the votes.
        rank, workers: among those that vote.
        buffers: no other exchange must use them between :meth:`send` and :meth:`receive`.
        device: of the planes.
        workers_per_voter: of a node, where nodes vote.

    Attributes:
        bits: per parameter of the outcome, known when it is decided.
    """

    bits: int = 1

    def __init__(
        self,
        layout: Layout,
        bucket: Bucket,
        digest: int,
        scaled: bool,
        rank: int,
        workers: int,
        buffers: Buffers,
        device: torch.device,
        workers_per_voter: int = 1,
    ) -> None:
        self.bucket = bucket
        self._workers_per_voter = workers_per_voter
        self._layout, self._digest, self._scaled = layout, digest, scaled
        self._rank, self._workers = rank, workers
        self._buffers, self._device = buffers, device
        self._tensors = bucket.last - bucket.first
        self._head = BallotHeader.size(self._tensors, scaled)
        self._work: Pending | None = None
        self._padded: tuple[Tensor, Tensor] | None = None  # bytes with padding, and their other bits

    @abstractmethod
    def send(self, ballots: Ballots, terms: Terms) -> None:
        """Start sending the own votes."""

    @abstractmethod
    def decide(self, terms: Terms) -> None:
        """Wait for the votes of all ranks and decide what this rank decides.

        Raises:
            RuntimeError: another rank votes on something else, or sent something damaged.
        """

    @abstractmethod
    def receive(self, planes: Tensor, terms: Terms) -> Outcome:
        """Wait for the outcome and write it into ``planes``, uint8, ``[k, size]``.

        Raises:
            RuntimeError: another rank sent something damaged.
        """

    @property
    def arrived(self) -> bool:
        """Whether the next step need not wait."""
        return self._work is None or self._work.is_completed

    def wait(self) -> None:
        """Wait for what is under way."""
        work, self._work = self._work, None
        if work is not None:
            work.wait()

    def _from_bytes(self, data: bytes) -> Tensor:
        return torch.frombuffer(bytearray(data), dtype=torch.uint8).to(self._device)

    def _header(self, ballots: Ballots, room: int, terms: Terms) -> Tensor:
        header = BallotHeader(
            terms.step,
            self._digest,
            room,
            ballots.missing,
            ballots.scales,
            terms.detailed,
            terms.exact,
            ballots.nonfinite,
        )
        return self._from_bytes(header.to_bytes())

    def _gather_more(self, channel: PlaneChannel, room: int, terms: Terms) -> Tensor:
        """What a slot of a channel with one row for all receivers had no room for."""
        extra = torch.zeros(1, room, dtype=torch.uint8, device=self._device)
        channel.write(extra)
        if self._workers == 1:
            return extra
        received = extra.new_empty(self._workers, room)
        terms.traffic.all_gather(received, extra.view(-1), terms.group).wait()
        return received

    def _read_headers(self, rows: Tensor, most_room: int, terms: Terms) -> list[BallotHeader]:
        """The headers in front of all ranks' rows."""
        return [
            BallotHeader.from_bytes(
                head.tobytes(),
                self._tensors,
                rank,
                terms.step,
                self._digest,
                most_room,
                self._scaled,
                terms.detailed,
                terms.exact,
                self._workers_per_voter,
            )
            for rank, head in enumerate(rows[:, : self._head].cpu().numpy())
        ]

    def _decide(
        self,
        votes: Tensor,
        absent: Tensor | None,
        headers: list[BallotHeader],
        start: int,
        terms: Terms,
    ) -> tuple[Decided, Outcome]:
        """Decide the coordinates from byte ``start`` of the plane on."""
        with terms.traffic.timed("tally"):
            self._clear_padding(votes, start)
            if absent is not None:
                self._clear_padding(absent, start)
            factors = torch.tensor([header.scales for header in headers]) if self._scaled else None
            ballots = ShardBallots(votes, absent, factors, self._layout, start, terms.step)
            decided = terms.decide(ballots)
            padding = self._padding(start, start + votes.shape[1]) * self._workers
            decided.counts.votes -= padding
            decided.counts.margin -= padding
            outcome = Outcome(
                present=[not all(missing) for missing in zip(*(h.missing for h in headers), strict=True)],
                counts=decided.counts,
                scales=factors,
                details=VoteDetails.of_shard(ballots, decided) if terms.detailed else None,
                abstentions=absent is not None,  # the same on all ranks
                nonfinite=[header.nonfinite for header in headers],
            )
        return decided, outcome

    def _clear_padding(self, rows: Tensor, start: int) -> None:
        """Clear bits that belong to no coordinate, whatever a rank sent there: counts would be wrong."""
        stop = start + rows.shape[1]
        if self._padded is None:
            first, last, layout = self.bucket.first, self.bucket.last, self._layout
            ends = {
                end - 1 - start: 255 >> layout.padding(index)
                for index, end in enumerate(layout.offsets[first + 1 : last + 1], first)
                if start < end <= stop and layout.padding(index)
            }
            masks = torch.tensor(list(ends.values()), dtype=torch.uint8, device=self._device)
            self._padded = torch.tensor(list(ends), dtype=torch.int64, device=self._device), masks
        places, masks = self._padded
        if len(places):
            rows[:, places] &= masks
        rows[:, max(0, self._layout.num_bytes - start) :] = 0

    def _padding(self, start: int, stop: int) -> int:
        """Bits of a part of the plane that belong to no coordinate; they always vote +."""
        first, last = self.bucket.first, self.bucket.last
        ends = enumerate(self._layout.offsets[first + 1 : last + 1], first)
        inside = sum(self._layout.padding(index) for index, end in ends if start < end <= stop)
        return inside + 8 * (stop - max(start, min(stop, self._layout.num_bytes)))


def settle(channel: PlaneChannel, rooms: Sequence[int], slots: Tensor, more: Callable[[int], Tensor]) -> None:
    """Read what changed in a channel's planes: from the slots, or ``more(room)`` where they are too small."""
    room = max(rooms)
    if channel.settle(room):
        channel.read(more(room))
    elif room:
        channel.read(slots)
