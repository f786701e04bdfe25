"""When the votes stop meaning anything: where, who, and what to try."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer
from typing_extensions import override

from lightning_signvr.callbacks.watching import Monitor, is_logging_step, layer_agreements
from lightning_signvr.voting import VoteDetails

log = logging.getLogger(__name__)


class VoteAutopsy(Monitor):
    """Warn once, clearly, when the workers' agreement collapses or a worker votes against the others.

    Looks at the steps that ``Trainer(log_every_n_steps)`` logs. After ``patience`` of them in a row with an
    agreement below ``threshold`` it names the layers that agree least, and says what to try. A worker whose
    votes the outcome contradicts more often than not, over as many steps, is named by its rank: even pure
    noise agrees with an outcome that it has a part in, so such a worker has wrong labels, another model, a
    broken machine, or is hostile. It warns again only after things were well in between. Logs nothing else.

    Agreement falls in every run as the gradient shrinks below its noise: that is no illness as long as the
    loss falls.

    Args:
        threshold: agreement below which votes are noise, in (0, 1); None for 2 % above that of fair coins,
            which is about ``0.8 / sqrt(n)`` for n workers.
        patience: logged steps in a row, at least 1.
        layers: how many layers to name, at least 1.

    Attributes:
        findings: what was warned of so far.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> trainer = Trainer(strategy="sign_vote", callbacks=[VoteAutopsy()])  # doctest: +SKIP
    """

    needs_votes = True

    def __init__(self, threshold: float | None = None, patience: int = 3, layers: int = 3) -> None:
        if threshold is not None and not 0 < threshold < 1:
            raise ValueError(f"threshold must be None or between 0 and 1, got {threshold}")
        for name, value in {"patience": patience, "layers": layers}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.threshold, self.patience, self.layers = threshold, patience, layers
        self.findings: list[str] = []
        self._low: list[int] = []
        self._against: list[dict[int, int]] = []

    @override
    def start(self, trainer: Trainer, module: LightningModule) -> None:
        super().start(trainer, module)
        self._low = [0] * len(self._voters)
        self._against = [{} for _ in self._voters]

    @override
    def before_step(self, trainer: Trainer, optimizer: Optimizer) -> None:
        for own, vote in self._voters:
            if own is optimizer:
                vote.request_details()

    @override
    def after_step(self, trainer: Trainer) -> None:
        for number, (_, vote) in enumerate(self._voters):
            voted = vote.last
            if voted is None or voted.details is None or voted.workers == 1:
                continue
            if not is_logging_step(trainer) or not self.has_voted(number):
                continue
            self._examine_workers(trainer, number, voted.details)
            if not any(self._against[number].values()):  # that would explain it
                self._examine_agreement(trainer, number, voted.agreement, voted.details, voted.workers)

    def _examine_agreement(
        self, trainer: Trainer, number: int, agreement: float, details: VoteDetails, workers: int
    ) -> None:
        limit = 1.02 * noise_agreement(workers) if self.threshold is None else self.threshold
        self._low[number] = self._low[number] + 1 if agreement < limit else 0
        if self._low[number] != self.patience:
            return
        layers = layer_agreements(details, self._voters[number][0], trainer.lightning_module)
        known = [(name, value) for name, value in layers.items() if not math.isnan(value)]
        worst = sorted(known, key=lambda pair: pair[1])[: self.layers]
        self._warn(
            trainer,
            f"the workers' votes hardly agree: {agreement:.3f} where coins give "
            f"{noise_agreement(workers):.3f} (threshold {limit:.3f}, {self.patience} logged steps in a row). "
            f"Least in {', '.join(f'{name} ({value:.3f})' for name, value in worst)}. If the loss does not "
            "fall: larger batches or more momentum (less noise), a higher learning rate if it is very small, "
            "EFSignum or EFLion if the workers' data differ",
        )

    def _examine_workers(self, trainer: Trainer, number: int, details: VoteDetails) -> None:
        against = self._against[number]
        for rank, share in enumerate(details.worker_agreement):
            against[rank] = against.get(rank, 0) + 1 if share < 0.5 else 0
        odd = [rank for rank, times in against.items() if times == self.patience]
        if odd:
            shares = _listed(details.worker_agreement)
            self._warn(
                trainer,
                f"worker(s) {', '.join(map(str, odd))} vote against the outcome more often than with it "
                f"({self.patience} logged steps in a row; agreement by rank: {shares}). Look at their "
                "labels, their data and their machine; a majority vote outvotes them, a scaled mean does not",
            )

    def _warn(self, trainer: Trainer, finding: str) -> None:
        self.findings.append(finding)
        if trainer.is_global_zero:
            log.warning("sign vote, step %d: %s", trainer.global_step, finding)


def noise_agreement(workers: int) -> float:
    """Agreement of fair coins: the mean of ``|sum of n signs| / n``.

    Example:
        >>> noise_agreement(2), noise_agreement(3)
        (0.5, 0.5)
    """
    heads = np.arange(workers + 1)
    shares = np.array([math.comb(workers, k) / 2**workers for k in heads])
    return float((shares * np.abs(workers - 2 * heads)).sum() / workers)


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{rank}: {value:.3f}" for rank, value in enumerate(values))
