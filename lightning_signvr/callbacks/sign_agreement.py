"""How far the workers' votes agree: in total, by layer, by worker."""

from __future__ import annotations

from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer
from typing_extensions import override

from lightning_signvr.callbacks.tensorboard import HeatMap, writers_of
from lightning_signvr.callbacks.watching import (
    Monitor,
    is_logging_step,
    layer_agreements,
    logged_step,
    numbered,
)
from lightning_signvr.metrics import FlipRate
from lightning_signvr.voting import MajorityVote, VoteDetails, VotedSigns


class SignAgreementMonitor(Monitor):
    """Log how far the workers' votes agree. Nothing is exchanged for it but what rides on the vote itself.

    =====================================  ===========================================================
    key                                    value
    =====================================  ===========================================================
    ``sign_vote/agreement``                mean of ``|sum of signs| / voters``: 1 if all agree, about
                                           ``0.8 / sqrt(n)`` for the noise of n coins
    ``sign_vote/tie_rate``                 share of the coordinates that were tied
    ``sign_vote/abstain_rate``             share of the votes that were not cast
    ``sign_vote/flip_rate``                share of the outcomes that differ from the step before
    ``sign_vote/agreement/<layer>``        agreement within a layer, with ``per_layer``
    ``sign_vote/worker_agreement/<rank>``  share of a worker's votes that the outcome agrees with, with
                                           ``per_worker``: far below the others' is a broken, mislabelled
                                           or hostile one
    =====================================  ===========================================================

    In TensorBoard also ``sign_vote/margin``, the histogram of ``|sum of signs|``, and at the end, where
    matplotlib is there, the layers' agreement over time as a heat map. With several optimizers the number of
    the optimizer is appended to the keys.

    Args:
        per_layer: whether to look at each layer; a layer is a module with parameters of its own.
        per_worker: whether to look at each worker.
        flips: whether to compare with the step before; keeps a bit per parameter.

    Example:
        >>> trainer = Trainer(strategy="sign_vote", callbacks=[SignAgreementMonitor()])  # doctest: +SKIP
    """

    needs_votes = True

    def __init__(self, per_layer: bool = True, per_worker: bool = True, flips: bool = True) -> None:
        self.per_layer, self.per_worker, self.flips = per_layer, per_worker, flips
        self._flip_rates: dict[int, tuple[int, FlipRate]] = {}  # with the vote before the logged one
        self._heat_map = HeatMap("sign_vote/agreement by layer")

    @override
    def start(self, trainer: Trainer, module: LightningModule) -> None:
        super().start(trainer, module)
        self._flip_rates = {}
        self._heat_map.clear()

    @override
    def before_step(self, trainer: Trainer, optimizer: Optimizer) -> None:
        for own, vote in self._voters:
            if own is optimizer and (self.per_layer or self.per_worker):
                vote.request_details()

    @override
    def after_step(self, trainer: Trainer) -> None:
        for number, (_, vote) in enumerate(self._voters):
            self._flip_rates.pop(number, None)
            if self.flips and vote.last is not None and is_logging_step(trainer, ahead=1):
                flip_rate = FlipRate()
                flip_rate.update(vote.last)
                self._flip_rates[number] = vote.step, flip_rate

    @override
    def of_all_workers(self, trainer: Trainer) -> dict[str, float]:
        values: dict[str, float] = {}
        for number, (optimizer, vote) in enumerate(self._voters):
            voted = vote.last
            if voted is None or not self.has_voted(number):
                continue
            found = {
                "agreement": voted.agreement,
                "tie_rate": voted.tie_rate,
                "abstain_rate": voted.abstain_rate,
            }
            if self.flips:
                found.update(self._flips(number, vote, voted))
            if voted.details is not None:
                found.update(self._closer(number, voted.details, optimizer, trainer))
            for key, value in found.items():
                values[numbered(f"sign_vote/{key}", number, len(self._voters))] = value
        return values

    def _flips(self, number: int, vote: MajorityVote, voted: VotedSigns) -> dict[str, float]:
        step, flip_rate = self._flip_rates.get(number, (-1, None))
        if flip_rate is None or vote.step != step + 1:  # no vote in the step before, or none in this one
            return {}
        flip_rate.update(voted)
        return {"flip_rate": float(flip_rate.compute())} if flip_rate.compared else {}

    def _closer(
        self, number: int, details: VoteDetails, optimizer: Optimizer, trainer: Trainer
    ) -> dict[str, float]:
        values = {}
        if self.per_layer:
            layers = layer_agreements(details, optimizer, trainer.lightning_module)
            values = {f"agreement/{name}": value for name, value in layers.items()}
            if number == 0:
                self._heat_map.add(logged_step(trainer), layers)
        if self.per_worker:
            pairs = enumerate(details.worker_agreement)
            values.update({f"worker_agreement/{rank}": share for rank, share in pairs})
        return values

    @override
    def show(self, trainer: Trainer, step: int) -> None:
        for number, (_, vote) in enumerate(self._voters):
            if vote.last is None or vote.last.details is None or not self.has_voted(number):
                continue
            for writer in writers_of(trainer):
                tag = numbered("sign_vote/margin", number, len(self._voters))
                _write_histogram(writer, tag, vote.last.details.margins.sum(0), step)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for writer in writers_of(trainer):
            self._heat_map.write(writer)


def _write_histogram(writer: Any, tag: str, counts: np.ndarray[Any, np.dtype[np.int64]], step: int) -> None:
    margins = np.arange(len(counts))
    total = float(counts.sum())
    writer.add_histogram_raw(
        tag,
        min=0.0,
        max=float(margins[-1]),
        num=total,
        sum=float((margins * counts).sum()),
        sum_squares=float((margins**2 * counts).sum()),
        bucket_limits=(margins + 0.5).tolist(),
        bucket_counts=counts.tolist(),
        global_step=step,
    )
