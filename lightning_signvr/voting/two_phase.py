"""The packed-sign all-reduce in two phases: 2 (n - 1) / n bits per parameter and rank.

1. A bucket's sign bits are cut into n shards, and shard r of every rank goes to rank r, its owner
   (``all_to_all``), with the rank's header in front.
2. The owner decides from the votes on its shard: see :mod:`lightning_signvr.voting.decisions`.
3. The outcome goes from each owner to all ranks (``all_gather``), with the owner's header in front.

Which coordinates abstain (up) and which stay undecided (down) is said by a second plane in each
direction, of which only the changes travel: see :mod:`lightning_signvr.voting.channel`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_signvr.signs import Counts
from lightning_signvr.voting.channel import PlaneChannel
from lightning_signvr.voting.details import VoteDetails
from lightning_signvr.voting.exchange import Ballots, Exchange, Outcome, Terms, settle
from lightning_signvr.voting.header import OutcomeHeader


class TwoPhase(Exchange):
    """See the module.

    Args:
        undecided: gives the part of the plane of undecided coordinates that is the bucket's, uint8,
            ``[size]``; asked for when there is one.
    """

    def __init__(self, undecided: Callable[[], Tensor], **common: Any) -> None:
        super().__init__(**common)
        workers, shard = self._workers, self.bucket.shard
        self._up = PlaneChannel(workers, workers, shard, self._device)
        self._down = PlaneChannel(1, workers, shard, self._device, storage=undecided)

    @override
    def send(self, ballots: Ballots, terms: Terms) -> None:
        body = self._head + self.bucket.shard
        with terms.traffic.timed("pack"):
            sent = self._buffers.get("sent", self._workers, body + self._up.slot)
            absent = ballots.abstaining
            room = self._up.prepare(None if absent is None else absent.view(self._workers, -1))
            sent[:, : self._head] = self._header(ballots, room, terms)
            sent[:, self._head : body] = ballots.negative.view(self._workers, -1)
            self._up.write(sent[:, body:])
        self._received = sent
        if self._workers > 1:
            self._received = self._buffers.get("received", *sent.shape)
            self._work = terms.traffic.all_to_all(self._received, sent, terms.group)

    @override
    def decide(self, terms: Terms) -> None:
        body = self._head + self.bucket.shard
        received = self._received
        with terms.traffic.timed("all_to_all"):
            self.wait()
            headers = self._read_headers(received, self._up.most_room, terms)
            rooms = [header.room for header in headers]
            settle(self._up, rooms, received[:, body:], lambda room: self._send_up_more(room, terms))
        start = self.bucket.start + self._rank * self.bucket.shard
        decided, self._outcome = self._decide(
            received[:, self._head : body], self._up.received, headers, start, terms
        )
        numbers = None if self._outcome.details is None else self._outcome.details.to_numbers()
        bits = self.bits = terms.decide.planes(self._workers, self._outcome.abstentions)
        self._extras = (self._tensors, decided.scales is not None, 0 if numbers is None else numbers.size)
        self._head_down = OutcomeHeader.size(*self._extras)
        body = self._head_down + bits * self.bucket.shard
        with terms.traffic.timed("all_gather"):
            mine = self._buffers.get("outcome", 1, body + self._down.slot)
            undecided = decided.undecided
            room = self._down.prepare(None if undecided is None else undecided.view(1, -1))
            header = OutcomeHeader(decided.counts, room, decided.scales, numbers)
            mine[:, : self._head_down] = self._from_bytes(header.to_bytes())
            sent = decided.negative if decided.planes is None else decided.planes
            mine[0, self._head_down : body].view(bits, -1).copy_(sent)
            self._down.write(mine[:, body:])
            self._everyones = mine
            if self._workers > 1:
                self._everyones = self._buffers.get("outcomes", self._workers, mine.shape[1])
                self._work = terms.traffic.all_gather(self._everyones, mine.view(-1), terms.group)

    @override
    def receive(self, planes: Tensor, terms: Terms) -> Outcome:
        head, body = self._head_down, self._head_down + self.bits * self.bucket.shard
        everyones, outcome = self._everyones, self._outcome
        with terms.traffic.timed("all_gather"):
            self.wait()
            headers = [
                OutcomeHeader.from_bytes(data.tobytes(), rank, self._down.most_room, *self._extras)
                for rank, data in enumerate(everyones[:, :head].cpu().numpy())
            ]
            received = everyones[:, head:body].view(self._workers, self.bits, -1)
            for owner in range(self._workers):
                planes[:, owner * self.bucket.shard : (owner + 1) * self.bucket.shard] = received[owner]
            rooms = [header.room for header in headers]
            settle(
                self._down,
                rooms,
                everyones[:, body:],
                partial(self._gather_more, self._down, terms=terms),
            )
        outcome.counts = sum_of_counts(header.counts for header in headers)
        looks = [header.details for header in headers if header.details is not None]
        if looks:
            outcome.details = VoteDetails.sum_of(looks, len(self._layout.numels), self._workers)
        if headers[0].scales is not None:
            outcome.answers = torch.tensor([header.scales for header in headers])
        outcome.shard = self.bucket.shard
        return outcome

    def _send_up_more(self, room: int, terms: Terms) -> Tensor:
        extra = torch.zeros(self._workers, room, dtype=torch.uint8, device=self._device)
        self._up.write(extra)
        if self._workers == 1:
            return extra
        received = torch.empty_like(extra)
        terms.traffic.all_to_all(received, extra, terms.group).wait()
        return received


def sum_of_counts(parts: Iterable[Counts]) -> Counts:
    """Of several parts of the plane."""
    total = Counts()
    for part in parts:
        total += part
    return total
