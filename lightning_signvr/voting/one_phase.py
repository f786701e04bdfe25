"""The packed-sign all-reduce in one phase: n - 1 bits per parameter and rank, and half the waiting.

Every rank sends its votes to all others (``all_gather``) and decides the whole bucket itself. For two
workers those are the bytes of :mod:`lightning_signvr.voting.two_phase`; for more it pays where the bucket
is so small that the link's latency counts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from typing_extensions import override

from lightning_signvr.voting.channel import PlaneChannel
from lightning_signvr.voting.exchange import Ballots, Exchange, Outcome, Terms, settle


class OnePhase(Exchange):
    """See the module; for decisions that do not depend on who decides.

    Args:
        undecided: gives the part of the plane of undecided coordinates that is the bucket's, uint8,
            ``[size]``; asked for when there is one.
    """

    def __init__(self, undecided: Callable[[], Tensor], **common: Any) -> None:
        super().__init__(**common)
        self._undecided = undecided
        self._had_undecided = False
        self._up = PlaneChannel(1, self._workers, self.bucket.size, self._device)

    @override
    def send(self, ballots: Ballots, terms: Terms) -> None:
        body = self._head + self.bucket.size
        with terms.traffic.timed("pack"):
            sent = self._buffers.get("sent", 1, body + self._up.slot)
            room = self._up.prepare(None if ballots.abstaining is None else ballots.abstaining.view(1, -1))
            sent[:, : self._head] = self._header(ballots, room, terms)
            sent[:, self._head : body] = ballots.negative
            self._up.write(sent[:, body:])
        self._received = self._buffers.get("received", self._workers, sent.shape[1])
        self._work = terms.traffic.all_gather(self._received, sent.view(-1), terms.group)

    @override
    def decide(self, terms: Terms) -> None:
        body = self._head + self.bucket.size
        received = self._received
        with terms.traffic.timed("all_gather"):
            self.wait()
            headers = self._read_headers(received, self._up.most_room, terms)
            rooms = [header.room for header in headers]
            settle(self._up, rooms, received[:, body:], partial(self._gather_more, self._up, terms=terms))
        self._decided, self._outcome = self._decide(
            received[:, self._head : body], self._up.received, headers, self.bucket.start, terms
        )

    @override
    def receive(self, planes: Tensor, terms: Terms) -> Outcome:
        decided = self._decided
        del self._decided  # a plane or two of the bucket
        planes[0].copy_(decided.negative)
        undecided = decided.undecided
        if undecided is not None and bool(undecided.any()):
            self._undecided().copy_(undecided)
            self._had_undecided = True
        elif self._had_undecided:
            self._undecided().zero_()
            self._had_undecided = False
        return self._outcome
