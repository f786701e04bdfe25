"""The packed-sign all-reduce: two phases, 2 (n - 1) / n bits per parameter and rank.

1. The plane of sign bits is cut into n shards, and shard r of every rank goes to rank r, its owner
   (``all_to_all``), with the rank's header in front.
2. The owner decides from the votes on its shard: see :mod:`lightning_signvr.voting.decisions`.
3. The outcome goes from each owner to all ranks (``all_gather``), with the owner's header in front.

Which coordinates abstain (up) and which stay undecided (down) is said by a second plane in each
direction, of which only the changes travel: see :mod:`lightning_signvr.voting.channel`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_signvr.signs import Counts
from lightning_signvr.voting.channel import PlaneChannel
from lightning_signvr.voting.decisions import Decided, Decision, ShardBallots
from lightning_signvr.voting.details import VoteDetails
from lightning_signvr.voting.header import BallotHeader, OutcomeHeader
from lightning_signvr.voting.layout import Layout
from lightning_signvr.voting.traffic import Traffic, wait


@dataclass
class Outcome:
    """What came out of an exchange; see :class:`VotedSigns` and its subclasses."""

    planes: Tensor
    undecided: Tensor | None
    present: list[bool]
    counts: Counts
    scales: Tensor | None
    details: VoteDetails | None
    abstentions: bool
    answers: Tensor | None
    shard: int


class Exchange:
    """Buffers and steps of the vote on one layout.

    Attributes:
        plane_size: bytes of a plane, which is the layout's, padded to n equal shards.
    """

    def __init__(
        self,
        layout: Layout,
        rules: Hashable,
        scaled: bool,
        rank: int,
        workers: int,
        device: torch.device,
    ) -> None:
        self._layout, self._scaled = layout, scaled
        self._rank, self._workers, self._device = rank, workers, device
        self._digest = layout.digest(rules, scaled, workers)
        self._shard = -(-layout.num_bytes // (8 * workers)) * 8
        self._head = BallotHeader.size(len(layout.numels), scaled)
        self._up = PlaneChannel(workers, workers, self._shard, device)
        self._down = PlaneChannel(1, workers, self._shard, device)
        self._padding = self._padding_bits()
        self._buffers: dict[str, Tensor] = {}
        self.plane_size = workers * self._shard

    def _padding_bits(self) -> int:
        """Bits of the own shard that belong to no coordinate; they always vote +."""
        first, last = self._rank * self._shard, (self._rank + 1) * self._shard
        ends = enumerate(self._layout.offsets[1:])
        inside = sum(self._layout.padding(index) for index, end in ends if first < end <= last)
        return inside + 8 * (last - max(first, min(last, self._layout.num_bytes)))

    def _buffer(self, name: str, *shape: int) -> Tensor:
        """A buffer that is kept as long as its shape is the same, which it is but for the slots."""
        if name not in self._buffers or self._buffers[name].shape != shape:
            self._buffers[name] = torch.zeros(shape, dtype=torch.uint8, device=self._device)
        return self._buffers[name]

    def _from_bytes(self, data: bytes) -> Tensor:
        return torch.frombuffer(bytearray(data), dtype=torch.uint8).to(self._device)

    def run(
        self,
        negative: Tensor,
        abstaining: Tensor | None,
        missing: Sequence[bool],
        scales: Sequence[float] | None,
        decide: Decision,
        step: int,
        traffic: Traffic,
        group: dist.ProcessGroup | None,
        detailed: bool,
    ) -> Outcome:
        """Replace the own sign bits in ``negative`` by the voted ones; a collective.

        Args:
            negative: uint8, ``[plane_size]``, the own sign bits.
            abstaining: uint8, ``[plane_size]``, where this rank does not vote; None for nowhere.
            missing: per tensor, whether this rank has no direction at all.
            scales: per tensor, the factor of this rank's signs; None for plain votes.
            decide: called for the own shard.
            detailed: whether to look closely at the votes; the same on all ranks.

        Raises:
            RuntimeError: another rank votes on something else, or sent something damaged.
        """
        exact = decide.average is not None
        votes, headers = self._send_up(
            negative, abstaining, missing, scales, step, traffic, group, detailed, exact
        )
        with traffic.timed("tally"):
            factors = torch.tensor([header.scales for header in headers]) if self._scaled else None
            ballots = ShardBallots(
                votes, self._up.received, factors, self._layout, self._rank * self._shard, step
            )
            decided = decide(ballots)
            decided.counts.votes -= self._padding * self._workers
            decided.counts.margin -= self._padding * self._workers
            details = VoteDetails.of_shard(ballots, decided) if detailed else None
        abstentions = self._up.received is not None  # the same on all ranks
        planes = negative.view(1, -1)
        if (bits := decide.planes(self._workers, abstentions)) > 1:
            planes = self._buffer("planes", bits, self.plane_size)
        outcomes = self._send_down(planes, decided, details, traffic, group)
        total = Counts()
        for outcome in outcomes:
            total += outcome.counts
        looks = [outcome.details for outcome in outcomes if outcome.details is not None]
        return Outcome(
            planes=planes,
            undecided=None if self._down.received is None else self._down.received.view(-1),
            present=[not all(missing) for missing in zip(*(h.missing for h in headers), strict=True)],
            counts=total,
            scales=factors,
            details=VoteDetails.sum_of(looks, len(missing), self._workers) if detailed else None,
            abstentions=abstentions,
            answers=torch.tensor([o.scales for o in outcomes]) if decided.scales is not None else None,
            shard=self._shard,
        )

    # -- phase 1 ----------------------------------------------------------------------------------

    def _send_up(
        self,
        negative: Tensor,
        abstaining: Tensor | None,
        missing: Sequence[bool],
        scales: Sequence[float] | None,
        step: int,
        traffic: Traffic,
        group: dist.ProcessGroup | None,
        detailed: bool,
        exact: bool,
    ) -> tuple[Tensor, list[BallotHeader]]:
        """Send each shard to its owner; all ranks' votes on the own shard, and their headers."""
        body, slot = self._head + self._shard, self._up.slot
        sent = self._buffer("sent", self._workers, body + slot)
        with traffic.timed("pack"):
            room = self._up.prepare(None if abstaining is None else abstaining.view(self._workers, -1))
            header = BallotHeader(step, self._digest, room, missing, scales, detailed, exact)
            sent[:, : self._head] = self._from_bytes(header.to_bytes())
            sent[:, self._head : body] = negative.view(self._workers, -1)
            self._up.write(sent[:, body:])
        with traffic.timed("all_to_all"):
            received = self._all_to_all("received", sent, traffic, group)
            headers = [
                BallotHeader.from_bytes(
                    head.tobytes(),
                    len(missing),
                    rank,
                    step,
                    self._digest,
                    self._up.most_room,
                    self._scaled,
                    detailed,
                    exact,
                )
                for rank, head in enumerate(received[:, : self._head].cpu().numpy())
            ]
            room = max(header.room for header in headers)
            if self._up.settle(room):
                extra = torch.zeros(self._workers, room, dtype=torch.uint8, device=self._device)
                self._up.write(extra)
                self._up.read(self._all_to_all("extra", extra, traffic, group))
            elif room:
                self._up.read(received[:, body:])
        return received[:, self._head : body], headers

    def _all_to_all(
        self, name: str, sent: Tensor, traffic: Traffic, group: dist.ProcessGroup | None
    ) -> Tensor:
        if self._workers == 1:
            return sent
        received = self._buffer(name, *sent.shape)
        wait(traffic.all_to_all(received, sent, group))
        return received

    # -- phase 2 ----------------------------------------------------------------------------------

    def _send_down(
        self,
        planes: Tensor,
        decided: Decided,
        details: VoteDetails | None,
        traffic: Traffic,
        group: dist.ProcessGroup | None,
    ) -> list[OutcomeHeader]:
        """Send the own shard's outcome to all ranks and write everyone's into ``planes``."""
        numbers = None if details is None else details.to_numbers()
        extras = (
            len(self._layout.numels),
            decided.scales is not None,
            0 if numbers is None else numbers.size,
        )
        head, bits, slot = OutcomeHeader.size(*extras), len(planes), self._down.slot
        body = head + bits * self._shard
        mine = self._buffer("outcome", 1, body + slot)
        with traffic.timed("all_gather"):
            undecided = decided.undecided
            room = self._down.prepare(None if undecided is None else undecided.view(1, -1))
            header = OutcomeHeader(decided.counts, room, decided.scales, numbers)
            mine[:, :head] = self._from_bytes(header.to_bytes())
            sent = decided.negative if decided.planes is None else decided.planes
            mine[0, head:body].view(bits, -1).copy_(sent)
            self._down.write(mine[:, body:])
            everyones = self._all_gather("outcomes", mine, traffic, group)
            headers = [
                OutcomeHeader.from_bytes(data.tobytes(), rank, self._down.most_room, *extras)
                for rank, data in enumerate(everyones[:, :head].cpu().numpy())
            ]
            received = everyones[:, head:body].view(self._workers, bits, -1)
            planes.view(bits, self._workers, -1).copy_(received.transpose(0, 1))
            room = max(header.room for header in headers)
            if self._down.settle(room):
                extra = torch.zeros(1, room, dtype=torch.uint8, device=self._device)
                self._down.write(extra)
                self._down.read(self._all_gather("extra outcomes", extra, traffic, group))
            elif room:
                self._down.read(everyones[:, body:])
        return headers

    def _all_gather(
        self, name: str, mine: Tensor, traffic: Traffic, group: dist.ProcessGroup | None
    ) -> Tensor:
        if self._workers == 1:
            return mine
        everyones = self._buffer(name, self._workers, mine.shape[1])
        wait(traffic.all_gather(everyones, mine.view(-1), group))
        return everyones
