"""The packed-sign all-reduce: two phases, 2 (n - 1) / n bits per parameter and rank.

1. Each tensor's bits are cut into n shards, and shard r of every rank goes to rank r, its owner
   (``all_to_all``), with the rank's header in front.
2. The owner counts the votes on its shard.
3. The outcome goes from each owner to all ranks (``all_gather``), with the owner's counts in front.

An exchange is about a fixed list of tensors. With ``two_planes`` each rank also sends which of its
coordinates abstain, and a second plane comes back, which says where nothing was decided.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_signvr.signs import Counts, majority, random_bytes
from lightning_signvr.voting.header import COUNTS_SIZE, Header, counts_from_bytes, counts_to_bytes
from lightning_signvr.voting.layout import Layout
from lightning_signvr.voting.rules import TIE_STREAM, TieRule
from lightning_signvr.voting.traffic import Traffic, wait


@dataclass(frozen=True)
class _Run:
    """Bytes of the own shard that lie together in the whole plane and have the same voters."""

    start: int  # in the exchange's bytes
    stop: int
    offset: int  # of the same bytes in the layout's plane
    padding: int  # bits in it that belong to no coordinate
    voters: tuple[int, ...]


class Exchange:
    """Buffers and steps of the vote on the tensors ``indices`` of ``layout``.

    Call :meth:`send`, :meth:`receive`, :meth:`decide` and :meth:`collect`, in this order; each starts
    or ends one collective, so that several exchanges can be under way at once.

    Attributes:
        zeros_return: whether a plane of undecided coordinates comes back; known after :meth:`decide`.
    """

    def __init__(
        self,
        layout: Layout,
        indices: Sequence[int],
        two_planes: bool,
        ties: TieRule,
        seed: int,
        rank: int,
        workers: int,
        device: torch.device,
    ) -> None:
        self.layout, self.indices, self.two_planes = layout, tuple(indices), two_planes
        self.ties, self.seed, self.rank, self.workers, self.device = ties, seed, rank, workers, device
        self.digest = layout.digest(self.indices, two_planes, ties, seed, workers)
        # the exchange's own plane: the parts of its tensors, one behind the other
        self._starts = [0]
        for index in self.indices:
            part = layout.part(index)
            self._starts.append(self._starts[-1] + part.stop - part.start)
        self._shard = -(-self._starts[-1] // (8 * workers)) * 8
        self._head = -(-Header.size(len(self.indices)) // 8) * 8
        self._plane = self._new(workers * self._shard)
        chunk = self._head + self._shard * (2 if two_planes else 1)
        self._sent = self._new(workers, chunk)
        self._received = self._new(workers, chunk) if workers > 1 else self._sent
        self._outcome: dict[bool, tuple[Tensor, Tensor]] = {}
        self._headers: list[Header] = []
        self._work: dist.Work | None = None
        self.zeros_return = two_planes

    def _new(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.uint8, device=self.device)

    # -- phase 1 ----------------------------------------------------------------------------------

    def send(
        self,
        negative: Tensor,
        abstaining: Tensor | None,
        missing: Sequence[bool],
        found: Sequence[bool],
        step: int,
        traffic: Traffic,
        group: dist.ProcessGroup | None,
    ) -> None:
        """Start sending this rank's bits of the layout's planes to their owners."""
        header = Header(
            step, self.digest, [missing[i] for i in self.indices], [found[i] for i in self.indices]
        ).to_bytes()
        self._sent[:, : len(header)] = torch.frombuffer(bytearray(header), dtype=torch.uint8).to(self.device)
        shards = self._sent[:, self._head :]
        shards[:, : self._shard] = self._pick(negative)
        if self.two_planes:
            assert abstaining is not None
            shards[:, self._shard :] = self._pick(abstaining)
        if self.workers > 1:
            self._work = traffic.all_to_all(self._received, self._sent, group)

    def _pick(self, plane: Tensor) -> Tensor:
        """This exchange's bytes of the layout's plane, one row per owner."""
        for start, stop, offset in self._stretches():
            self._plane[start:stop] = plane[offset : offset + stop - start]
        return self._plane.view(self.workers, self._shard)

    def _stretches(self) -> Iterator[tuple[int, int, int]]:
        """(start, stop, offset in the layout) of neighbouring tensors, joined where they touch."""
        start = 0
        for number, index in enumerate(self.indices):
            stop = self._starts[number + 1]
            last = number + 1 == len(self.indices) or self.indices[number + 1] != index + 1
            if last:
                offset = self.layout.part(index).stop - (stop - start)
                yield start, stop, offset
                start = stop

    def receive(self, step: int) -> Sequence[Header]:
        """Wait for the other ranks' bits; the header of every rank.

        Raises:
            RuntimeError: some rank is not about the same vote.
        """
        wait(self._work)
        heads = self._received[:, : Header.size(len(self.indices))].cpu().numpy()
        self._headers = [
            Header.from_bytes(head.tobytes(), len(self.indices), rank, step, self.digest)
            for rank, head in enumerate(heads)
        ]
        return self._headers

    # -- tally and phase 2 ------------------------------------------------------------------------

    def decide(
        self, excluded: Sequence[bool], step: int, traffic: Traffic, group: dist.ProcessGroup | None
    ) -> None:
        """Count the votes on the own shard and start sending the outcome to all ranks.

        Args:
            excluded: per tensor of this exchange, whether another exchange decides it.
        """
        some_missing = any(any(header.missing) for header in self._headers)
        ties_possible = self.workers % 2 == 0 or some_missing or self.two_planes
        self.zeros_return = self.two_planes or (self.ties == "zero" and ties_possible)
        if self.zeros_return not in self._outcome:
            size = COUNTS_SIZE + self._shard * (2 if self.zeros_return else 1)
            mine, everyones = self._new(size), self._new(self.workers, size)
            self._outcome[self.zeros_return] = (mine, everyones)
        mine, everyones = self._outcome[self.zeros_return]
        total = Counts()
        for run in self._runs(excluded):
            total += self._count(run, mine[COUNTS_SIZE:], step)
        mine[:COUNTS_SIZE] = counts_to_bytes(total).to(self.device)
        if self.workers > 1:
            self._work = traffic.all_gather(everyones, mine, group)
        else:
            everyones.copy_(mine)

    def _runs(self, excluded: Sequence[bool]) -> Iterator[_Run]:
        first, last = self.rank * self._shard, (self.rank + 1) * self._shard
        pending: _Run | None = None
        for number, index in enumerate(self.indices):
            start, stop = max(self._starts[number], first), min(self._starts[number + 1], last)
            if start >= stop or excluded[number]:
                continue
            voters = tuple(r for r, header in enumerate(self._headers) if not header.missing[number])
            offset = self.layout.offsets[index] + start - self._starts[number]
            padding = self.layout.padding(index) if stop == self._starts[number + 1] else 0
            if (
                pending is not None
                and pending.stop == start
                and pending.voters == voters
                and pending.offset + start - pending.start == offset
            ):
                padding += pending.padding
                pending = _Run(pending.start, stop, pending.offset, padding, voters)
                continue
            if pending is not None:
                yield pending
            pending = _Run(start, stop, offset, padding, voters)
        if pending is not None:
            yield pending

    def _count(self, run: _Run, outcome: Tensor, step: int) -> Counts:
        if not run.voters:
            return Counts()  # every rank knows from the headers that nothing was decided
        base = self.rank * self._shard
        start, size = run.start - base, run.stop - run.start
        everybody = len(run.voters) == self.workers
        rows = self._received if everybody else self._received[list(run.voters)]
        votes = rows[:, self._head + start :][:, :size]
        absent = rows[:, self._head + self._shard + start :][:, :size] if self.two_planes else None
        tally = majority(votes, absent)
        if tally.tied is not None and self.ties == "random" and tally.counts.ties:
            coins = random_bytes(self.seed, step, TIE_STREAM, run.offset, run.offset + size, self.device)
            tally.negative |= tally.tied & coins
        outcome[start : start + size] = tally.negative
        if self.zeros_return:
            undecided = outcome[self._shard + start : self._shard + start + size]
            undecided.zero_()
            if tally.silent is not None:
                undecided |= tally.silent
            if tally.tied is not None and self.ties == "zero":
                undecided |= tally.tied
        counts = tally.counts
        counts.votes -= run.padding * len(run.voters)
        counts.margin -= run.padding * len(run.voters)
        return counts

    def collect(self, negative: Tensor, zero: Tensor | None) -> Counts:
        """Wait for all outcomes and write them into the layout's planes; the counts over all shards.

        ``zero`` is written, and must be given, where ``zeros_return`` is set.
        """
        wait(self._work)
        self._work = None
        _, everyones = self._outcome[self.zeros_return]
        total = Counts()
        for data in everyones[:, :COUNTS_SIZE].cpu().numpy():
            total += counts_from_bytes(data.tobytes())
        self._put(negative, everyones[:, COUNTS_SIZE : COUNTS_SIZE + self._shard])
        if self.zeros_return:
            assert zero is not None
            self._put(zero, everyones[:, COUNTS_SIZE + self._shard :])
        return total

    def _put(self, plane: Tensor, shards: Tensor) -> None:
        self._plane.view(self.workers, self._shard).copy_(shards)
        for start, stop, offset in self._stretches():
            plane[offset : offset + stop - start] = self._plane[start:stop]
