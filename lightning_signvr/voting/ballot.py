"""One worker's packed votes on a fixed list of tensors, and how they are cast."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_signvr.signs import Counts, pack_signs, pack_signs_and_abstentions, random_bytes
from lightning_signvr.voting.exchange import Exchange
from lightning_signvr.voting.layout import Layout
from lightning_signvr.voting.result import VotedSigns
from lightning_signvr.voting.rules import TieRule, ZeroRule, zero_stream
from lightning_signvr.voting.traffic import Traffic

_KEPT = 4  # exchanges whose buffers are kept


class Ballot:
    """Packs votes and runs the exchanges that decide them.

    Most tensors have no exact zero and travel with one bit per parameter. A tensor in which some
    worker abstains on a coordinate needs a second plane. All ranks see the same headers and so expect
    the same tensors to need it in the next step; a tensor that needs it unexpectedly is left
    undecided by the first exchange, and decided by one more.
    """

    def __init__(
        self,
        layout: Layout,
        shapes: Sequence[torch.Size],
        device: torch.device,
        rank: int,
        workers: int,
        ties: TieRule,
        zeros: ZeroRule,
        seed: int,
    ) -> None:
        self.layout, self.shapes, self.device = layout, shapes, device
        self.rank, self.workers = rank, workers
        self.ties, self.zeros, self.seed = ties, zeros, seed
        self._negative = torch.zeros(layout.num_bytes, dtype=torch.uint8, device=device)
        self._abstaining = torch.zeros_like(self._negative) if zeros != "positive" else None
        self._zero: Tensor | None = None
        self._missing: list[bool] = []
        self._found: list[bool] = []  # per tensor: does this worker abstain on a coordinate of it?
        self._expected: frozenset[int] = frozenset()
        self._exchanges: dict[tuple[tuple[int, ...], bool], Exchange] = {}

    def fill(self, directions: Sequence[Tensor | None], step: int, traffic: Traffic) -> None:
        """Pack the signs of ``directions``, and by the zero rule what stands for no sign."""
        with traffic.timed("pack"):
            self._missing = [direction is None for direction in directions]
            self._found = [False] * len(directions)
            for index, direction in enumerate(directions):
                if direction is not None:
                    self._found[index] = self._pack(index, direction, step)

    def _pack(self, index: int, direction: Tensor, step: int) -> bool:
        part = self.layout.part(index)
        if self._abstaining is None:
            pack_signs(direction, self._negative[part])
            return False
        *_, found = pack_signs_and_abstentions(direction, self._negative[part], self._abstaining[part])
        if found and self.zeros == "random":
            stream = zero_stream(self.rank)
            coins = random_bytes(self.seed, step, stream, part.start, part.stop, self.device)
            self._negative[part] |= self._abstaining[part] & coins
            return False
        return found

    def cast(self, group: dist.ProcessGroup | None, step: int, traffic: Traffic) -> VotedSigns:
        """Exchange what :meth:`fill` packed. Which collectives run depends on headers alone."""
        everything = range(len(self.shapes))
        plain = self._exchange([i for i in everything if i not in self._expected], two_planes=False)
        expected = self._exchange(sorted(self._expected), two_planes=True)
        exchanges = [exchange for exchange in (plain, expected) if exchange is not None]
        present = [False] * len(self.shapes)
        abstained: set[int] = set()
        for exchange in exchanges:
            self._send(exchange, group, step, traffic)
        for exchange in exchanges:
            self._receive(exchange, group, step, traffic, present, abstained)
        surprise = self._exchange(sorted(abstained - self._expected), two_planes=True)
        if surprise is not None:
            self._send(surprise, group, step, traffic)
            self._receive(surprise, group, step, traffic, present, abstained)
            exchanges.append(surprise)
        self._expected = frozenset(abstained)
        return self._collect(exchanges, present, traffic)

    def _exchange(self, indices: Sequence[int], two_planes: bool) -> Exchange | None:
        key = (tuple(indices), two_planes)
        if indices and key not in self._exchanges:
            while len(self._exchanges) >= _KEPT:
                del self._exchanges[next(iter(self._exchanges))]
            self._exchanges[key] = Exchange(
                self.layout, indices, two_planes, self.ties, self.seed, self.rank, self.workers, self.device
            )
        return self._exchanges.get(key)

    def _send(
        self, exchange: Exchange, group: dist.ProcessGroup | None, step: int, traffic: Traffic
    ) -> None:
        with traffic.timed("pack"):
            exchange.send(
                self._negative, self._abstaining, self._missing, self._found, step, traffic, group
            )

    def _receive(
        self,
        exchange: Exchange,
        group: dist.ProcessGroup | None,
        step: int,
        traffic: Traffic,
        present: list[bool],
        abstained: set[int],
    ) -> None:
        """Receive and decide; note who voted on what."""
        with traffic.timed("all_to_all"):
            headers = exchange.receive(step)
        undecided = []
        for number, index in enumerate(exchange.indices):
            present[index] = not all(header.missing[number] for header in headers)
            abstains = any(header.abstaining[number] for header in headers)
            if abstains:
                abstained.add(index)
            undecided.append(abstains and not exchange.two_planes)
        with traffic.timed("tally"):
            exchange.decide(undecided, step, traffic, group)

    def _collect(
        self, exchanges: Sequence[Exchange], present: Sequence[bool], traffic: Traffic
    ) -> VotedSigns:
        if self._zero is None and any(exchange.zeros_return for exchange in exchanges):
            self._zero = torch.zeros_like(self._negative)
        counts = Counts()
        has_zeros = [False] * len(self.shapes)
        for exchange in exchanges:
            with traffic.timed("all_gather"):
                counts += exchange.collect(self._negative, self._zero)
            for index in exchange.indices:
                has_zeros[index] = exchange.zeros_return
        return VotedSigns(
            layout=self.layout,
            shapes=self.shapes,
            negative=self._negative,
            zero=self._zero,
            has_zeros=has_zeros,
            present=present,
            counts=counts,
            workers=self.workers,
        )
