"""What the votes cost: bytes, bits per parameter, seconds."""

from __future__ import annotations

import math
import time

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lightning_signvr.callbacks.watching import Monitor, numbered
from lightning_signvr.metrics import CommunicationSavings
from lightning_signvr.signs import Counts
from lightning_signvr.voting import MajorityVote


class CommunicationMonitor(Monitor):
    """Log what the votes send and how long they take, as means over the steps since the last log.

    =============================  ===================================================================
    key                            value
    =============================  ===================================================================
    ``comm/bytes_sent``            bytes that this rank handed to collectives in one step
    ``comm/bytes_received``        bytes that came from others
    ``comm/bits_per_parameter``    bytes sent, in bits, per parameter
    ``comm/savings_vs_fp32``       bits of a ring all-reduce of float32 gradients, divided by the above
    ``comm/savings_vs_bf16``       the same of bfloat16 gradients
    ``comm/saved_gb``              GB that a ring all-reduce of float32 would have sent more so far
    ``comm/seconds``               time that one step spent on the vote, packing included
    ``comm/seconds/<phase>``       of that: ``pack``, ``all_to_all``, ``tally``, ``all_gather``, and where
                                   nodes vote ``node_all_to_all``, ``node_all_gather``; waiting for slower
                                   workers is in the exchanges
    ``comm/share_of_step``         seconds of the vote, divided by the wall time of a step
    =============================  ===================================================================

    With several optimizers the number of the optimizer is appended. The values are rank 0's. With
    ``voters="node"`` most of the bytes stay inside the node; ``vote.traffic.bytes_inside`` says how many.

    Example:
        >>> trainer = Trainer(strategy="sign_vote", callbacks=[CommunicationMonitor()])  # doctest: +SKIP
    """

    needs_votes = True

    def __init__(self) -> None:
        self._meters: list[_Meter] = []

    def summary(self) -> dict[str, float]:
        """Of the first optimizer's votes since training began: agreement, bits_per_parameter, savings."""
        return self._meters[0].summary() if self._meters else {}

    @override
    def start(self, trainer: Trainer, module: LightningModule) -> None:
        super().start(trainer, module)
        self._meters = [_Meter(vote) for _, vote in self._voters]

    @override
    def after_step(self, trainer: Trainer) -> None:
        for meter in self._meters:
            meter.count_agreement()

    @override
    def of_all_workers(self, trainer: Trainer) -> dict[str, float]:
        return {
            numbered(f"comm/{key}", number, len(self._meters)): value
            for number, meter in enumerate(self._meters)
            for key, value in meter.since_last_log().items()
        }


class _Meter:
    """What a vote cost between two looks."""

    def __init__(self, vote: MajorityVote) -> None:
        self.vote = vote
        self._since_start, self._since_log = CommunicationSavings(), CommunicationSavings()
        for savings in (self._since_start, self._since_log):
            savings.update(vote)
        self._votes_at_start = self._votes_at_log = self._counted = vote.traffic.votes
        self._seconds, self._time = dict(vote.traffic.seconds), time.perf_counter()
        self._sum = Counts()

    def count_agreement(self) -> None:
        """Add the last vote's, if there was one since the last call."""
        if self.vote.last is not None and self.vote.traffic.votes != self._counted:
            self._counted = self.vote.traffic.votes
            self._sum += self.vote.last.counts

    @staticmethod
    def _per_step(savings: CommunicationSavings, steps: int) -> dict[str, float]:
        values = {key: float(value) for key, value in savings.compute().items()}
        del values["bits_received_per_parameter"]
        for key in ("bytes_sent", "bytes_received"):
            values[key] /= steps
        return {key: value for key, value in values.items() if math.isfinite(value)}

    def since_last_log(self) -> dict[str, float]:
        """What to log; nothing where no vote was cast since."""
        traffic, now = self.vote.traffic, time.perf_counter()
        steps = traffic.votes - self._votes_at_log
        if steps == 0:
            return {}
        for savings in (self._since_start, self._since_log):
            savings.update(self.vote)
        values = self._per_step(self._since_log, steps)
        values["saved_gb"] = float(4 * self._since_start.ring - self._since_start.sent) / 1e9
        phases = {key: (new - self._seconds.get(key, 0.0)) / steps for key, new in traffic.seconds.items()}
        values["seconds"] = sum(phases.values())
        values.update({f"seconds/{phase}": seconds for phase, seconds in phases.items()})
        values["share_of_step"] = values["seconds"] * steps / (now - self._time)
        self._since_log.reset()
        self._votes_at_log, self._seconds, self._time = traffic.votes, dict(traffic.seconds), now
        return values

    def summary(self) -> dict[str, float]:
        steps = self.vote.traffic.votes - self._votes_at_start
        if steps == 0:
            return {}
        self._since_start.update(self.vote)
        return {"agreement": self._sum.agreement, **self._per_step(self._since_start, steps)}
