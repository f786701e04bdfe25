"""What the votes cost: bytes, bits per parameter, seconds."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lightning_signvr.callbacks.watching import Monitor, numbered
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
    ``comm/seconds/<phase>``       of that: ``pack``, ``all_to_all``, ``tally``, ``all_gather``; waiting for
                                   slower workers is in the exchanges
    ``comm/share_of_step``         seconds of the vote, divided by the wall time of a step
    =============================  ===================================================================

    With several optimizers the number of the optimizer is appended. The values are rank 0's.

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


@dataclass
class _Reading:
    """A vote's counters at one time."""

    votes: int
    sent: int
    received: int
    seconds: dict[str, float]
    time: float = field(default_factory=time.perf_counter)

    @classmethod
    def of(cls, vote: MajorityVote) -> _Reading:
        traffic = vote.traffic
        return cls(traffic.votes, traffic.bytes_sent, traffic.bytes_received, dict(traffic.seconds))


class _Meter:
    """Differences of a vote's counters between two looks."""

    def __init__(self, vote: MajorityVote) -> None:
        self.vote = vote
        self._start = self._last = _Reading.of(vote)
        self._margin = self._votes = 0
        self._counted = vote.traffic.votes

    def count_agreement(self) -> None:
        """Add the last vote's, if there was one since the last call."""
        if self.vote.last is not None and self.vote.traffic.votes != self._counted:
            self._counted = self.vote.traffic.votes
            self._margin += self.vote.last.counts.margin
            self._votes += self.vote.last.counts.votes

    def _per_step(self, since: _Reading) -> dict[str, float]:
        assert self.vote.last is not None
        parameters = max(1, self.vote.last.layout.num_parameters)
        steps = self.vote.traffic.votes - since.votes
        sent = (self.vote.traffic.bytes_sent - since.sent) / steps
        bits = sent * 8 / parameters
        received = (self.vote.traffic.bytes_received - since.received) / steps
        values = {"bytes_sent": sent, "bytes_received": received, "bits_per_parameter": bits}
        if bits > 0:
            values["savings_vs_fp32"] = self._ring_bits(32) / bits
            values["savings_vs_bf16"] = self._ring_bits(16) / bits
        return values

    def _ring_bits(self, width: int) -> float:
        """What a ring all-reduce sends per parameter."""
        workers = self.vote.workers
        return width * 2 * (workers - 1) / workers

    def since_last_log(self) -> dict[str, float]:
        """What to log; nothing where no vote was cast since."""
        last, now = self._last, _Reading.of(self.vote)
        steps = now.votes - last.votes
        if steps == 0 or self.vote.last is None:
            return {}
        self._last = now
        values = self._per_step(last)
        numbers = self.vote.last.layout.num_parameters * (now.votes - self._start.votes)
        ring = self._ring_bits(32) / 8 * numbers
        values["saved_gb"] = (ring - (now.sent - self._start.sent)) / 1e9
        phases = {key: (total - last.seconds.get(key, 0.0)) / steps for key, total in now.seconds.items()}
        values["seconds"] = sum(phases.values())
        values.update({f"seconds/{phase}": seconds for phase, seconds in phases.items()})
        values["share_of_step"] = values["seconds"] * steps / (now.time - last.time)
        return values

    def summary(self) -> dict[str, float]:
        if self.vote.traffic.votes == self._start.votes or self.vote.last is None:
            return {}
        agreement = self._margin / self._votes if self._votes else float("nan")
        return {"agreement": agreement, **self._per_step(self._start)}
