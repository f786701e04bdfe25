"""Count bytes where they are handed to a collective, and the seconds spent waiting for it.

What a rank keeps for itself is not counted: ``all_to_all`` sends all chunks but the rank's own,
``all_gather`` sends the rank's chunk to every other rank. Wire protocols add their own framing
(TCP/IP about 3 %); no collective of a vote bypasses these functions.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch.distributed as dist
from torch import Tensor

from lightning_signvr.voting.pending import Pending


@dataclass
class Traffic:
    """Totals of one rank since its creation.

    Attributes:
        bytes_sent: payload that left this rank.
        bytes_inside: of these, what went to workers of the same node, where nodes vote; 0 elsewhere.
        bytes_received: payload that came from other ranks.
        collectives: number of collective calls.
        votes: number of votes that were cast.
        seconds: wall time of each phase, by its name.
        purpose: what the next collectives are for, for messages.
        verify: whether checksums travel beside what is sent, and are compared.
    """

    bytes_sent: int = 0
    bytes_inside: int = 0
    bytes_received: int = 0
    collectives: int = 0
    votes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    purpose: str = "a collective"
    verify: bool = False

    def all_to_all(self, output: Tensor, source: Tensor, group: dist.ProcessGroup | None) -> Pending:
        """Start sending row ``r`` of ``source`` to rank ``r``; row ``r`` of ``output`` comes from it."""
        pending = Pending(dist.all_to_all_single, output, source, group, self.purpose, self.verify)
        others = len(output) - 1
        self._count(others * source[0].nbytes)
        if pending.checksums is not None:
            self._count(others * pending.checksums[0].nbytes)
        return pending

    def all_gather(self, output: Tensor, source: Tensor, group: dist.ProcessGroup | None) -> Pending:
        """Start sending ``source`` to every rank; row ``r`` of ``output`` comes from rank ``r``."""
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        pending = Pending(gather, output, source, group, self.purpose, self.verify)
        others = len(output) - 1
        self._count(others * source.nbytes)
        if pending.checksums is not None:
            self._count(others * pending.checksums.nbytes)
        return pending

    def _count(self, size: int) -> None:
        self.bytes_sent += size
        self.bytes_received += size
        self.collectives += 1

    @contextmanager
    def unverified(self) -> Iterator[None]:
        """In the block no checksums travel."""
        before, self.verify = self.verify, False
        try:
            yield
        finally:
            self.verify = before

    @contextmanager
    def inside_node(self) -> Iterator[None]:
        """What the block sends stays in the node."""
        before = self.bytes_sent
        try:
            yield
        finally:
            self.bytes_inside += self.bytes_sent - before

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the wall time of the block to ``seconds[phase]``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add_seconds(phase, time.perf_counter() - start)

    def add_seconds(self, phase: str, seconds: float) -> None:
        """Add to ``seconds[phase]``."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
