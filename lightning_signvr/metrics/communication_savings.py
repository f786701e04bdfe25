"""What the votes cost on the wire, and what an all-reduce would have cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from typing_extensions import override

from lightning_signvr.metrics.base import VoteMetric
from lightning_signvr.voting import MajorityVote

_SAVINGS = {"savings_vs_fp32": 32, "savings_vs_bf16": 16}  # bits of a value


class CommunicationSavings(VoteMetric):
    """Bytes that this rank has sent and received for votes, beside a ring all-reduce of gradients.

    ``compute()`` returns a dict:

    ===============================  =================================================================
    key                              value
    ===============================  =================================================================
    ``bits_per_parameter``           sent per parameter and vote
    ``bits_received_per_parameter``  received per parameter and vote
    ``bytes_sent``                   sum, float64
    ``bytes_received``               sum, float64
    ``savings_vs_fp32``              ``2 (n - 1) / n * 32`` bits, which a ring all-reduce of fp32
                                     gradients sends per parameter, divided by ``bits_per_parameter``;
                                     NaN for a lone worker
    ``savings_vs_bf16``              the same with 16 bits
    ===============================  =================================================================

    The first update with a vote only looks at its counters, each later one adds what was sent since: update
    once before the first vote. Traffic of several votes, as of several optimizers, is added up; where nodes
    vote it is all that the rank sends, most of which stays in its node (``vote.traffic.bytes_inside``). With
    ``sync_on_compute=True`` the bytes are those of all ranks together, and the rest is their mean.

    Args:
        kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: ``dist_sync_on_step``.

    Example:
        >>> vote, savings = MajorityVote(), CommunicationSavings()
        >>> savings.update(vote)
        >>> votes = vote([torch.tensor([-0.3, 2.0])])
        >>> savings.update(vote)
        >>> savings.compute()["bits_per_parameter"]  # a lone worker sends nothing
        tensor(0.)
    """

    sent: Tensor
    received: Tensor
    voted: Tensor
    ring: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.refuse_sync_on_step()
        for name in ("sent", "received", "voted"):  # bytes, bytes, parameters times votes
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        # values that a ring all-reduce sends
        self.add_state("ring", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self._forget()

    def _forget(self) -> None:
        """Counters at the last update, which no reset changes; a copy of the metric starts anew."""
        self._seen: WeakKeyDictionary[MajorityVote, tuple[int, int, int]] = WeakKeyDictionary()

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_seen"}

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()

    @override
    def update(self, vote: MajorityVote) -> None:
        """Add what was sent since the last update with this vote, in any number of votes."""
        if not isinstance(vote, MajorityVote):
            raise TypeError(
                "vote must be the vote itself (optimizer.vote or strategy.votes[0]), got "
                f"{type(vote).__name__}"
            )
        now = vote.traffic.votes, vote.traffic.bytes_sent, vote.traffic.bytes_received
        steps, sent, received = (new - old for new, old in zip(now, self._seen.get(vote, now), strict=True))
        self._seen[vote] = now
        if steps == 0 or vote.last is None:
            return
        voted = steps * vote.last.layout.num_parameters
        self.sent += sent
        self.received += received
        self.voted += voted
        workers = vote.last.workers * vote.workers_per_voter
        self.ring += voted * 2 * (workers - 1) / workers

    @override
    def compute(self) -> dict[str, Tensor]:
        return {
            "bits_per_parameter": self.ratio(8 * self.sent, self.voted),
            "bits_received_per_parameter": self.ratio(8 * self.received, self.voted),
            "bytes_sent": self.sent.double(),
            "bytes_received": self.received.double(),
            **{key: self.ratio(bits * self.ring, 8 * self.sent) for key, bits in _SAVINGS.items()},
        }

    @override
    def plot(
        self, val: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]] | None = None, ax: Any = None
    ) -> Any:
        """Plot the savings; arguments, result and errors as for the other metrics."""
        val = self.compute() if val is None else val
        if isinstance(val, Mapping):
            return super().plot(_savings(val), ax)
        return super().plot([_savings(each) for each in val], ax)


def _savings(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: values[key] for key in _SAVINGS}
