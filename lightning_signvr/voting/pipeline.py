"""Several buckets under way at once, in an order that all ranks agree on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from lightning_signvr.voting.exchange import Exchange
from lightning_signvr.voting.failures import CollectiveError

AHEAD = 3
"""Buckets that are sent before the first of them is decided."""

BEHIND = 2
"""Buckets that are decided before the outcome of the first of them is received."""

LANES = AHEAD + BEHIND - 1
"""Buckets that are under way at once, each with buffers of its own."""


class Pipeline:
    """Send, decide and receive buckets.

    Collectives must be started in the same order on all ranks. So the order is fixed: a bucket is decided
    after it and the next ones (``AHEAD`` in all) were sent, and received after ``BEHIND`` were decided. What
    differs between ranks is only how early they do what comes next.

    Args:
        exchanges: of the buckets, in the order in which they go.
        packed: whether all votes of a bucket, by its place in that order, are there.
        send: sends it.
        decide: decides it.
        receive: receives it.

    Attributes:
        received: buckets whose outcome is there.
    """

    def __init__(
        self,
        exchanges: Sequence[Exchange],
        packed: Callable[[int], bool],
        send: Callable[[int], None],
        decide: Callable[[int], None],
        receive: Callable[[int], None],
    ) -> None:
        self._exchanges, self._packed = exchanges, packed
        self._do = {"send": send, "decide": decide, "receive": receive}
        self._schedule = list(schedule(len(exchanges)))
        self._next = 0
        self.received = 0

    def advance(self, wait: bool) -> bool:
        """Do what comes next; without ``wait`` only where it need not wait. Whether something was done.

        Raises:
            RuntimeError: a bucket is not packed where it should go, another rank votes on something else.
        """
        if self._next == len(self._schedule):
            return False
        what, bucket = self._schedule[self._next]
        arrived = self._packed if what == "send" else self._has_arrived
        if not (arrived(bucket) or (wait and what != "send")):
            return False
        try:
            self._do[what](bucket)
        except CollectiveError:
            raise
        except RuntimeError:
            with suppress(RuntimeError):  # the first error is the one to tell
                self._abandon()
            raise
        self._next += 1
        self.received += what == "receive"
        return True

    def _has_arrived(self, bucket: int) -> bool:
        return self._exchanges[bucket].arrived

    def _abandon(self) -> None:
        """Leave the group in the same state on all ranks, as far as can be.

        Votes on other tensors, by other rules or of another step are found on all ranks when they decide the
        first bucket; until then they send the same buckets, some earlier than others.
        """
        sent = [bucket for what, bucket in self._schedule[: self._next] if what == "send"]
        if not any(what == "decide" for what, _ in self._schedule[: self._next]):
            for bucket in range(len(sent), min(AHEAD, len(self._exchanges))):
                self._do["send"](bucket)
                sent.append(bucket)
        for bucket in sent:
            self._exchanges[bucket].wait()


def schedule(buckets: int) -> Iterator[tuple[str, int]]:
    """What is done in which order."""
    for turn in range(buckets + LANES):
        if 0 <= turn - LANES < buckets:
            yield "receive", turn - LANES
        if turn < buckets:
            yield "send", turn
        if 0 <= turn - AHEAD + 1 < buckets:
            yield "decide", turn - AHEAD + 1
