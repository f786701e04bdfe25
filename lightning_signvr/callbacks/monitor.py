"""A first look at a run: loss, gradient norm, sign agreement and communication in every logger."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_signvr.optimizers import SignOptimizer
from lightning_signvr.voting import MajorityVote


class SignVoteMonitor(Callback):
    """Log what the workers' votes look like, every ``Trainer(log_every_n_steps)`` steps.

    =============================  ===================================================================
    key                            value
    =============================  ===================================================================
    ``loss/train``                 mean over the workers of the last microbatch's loss
    ``grad_norm/local``            mean over the workers of the l2 norm of their own gradient, unscaled,
                                   before clipping
    ``sign_vote/agreement``        mean of ``|sum of signs| / voters``: 1 if all agree, about
                                   ``0.8 / sqrt(n)`` for the noise of n coins
    ``sign_vote/tie_rate``         share of the coordinates that were tied
    ``sign_vote/abstain_rate``     share of the votes that were not cast
    ``comm/bytes_sent``            bytes that this rank handed to collectives for one step's vote
    ``comm/bits_per_parameter``    the same in bits, per parameter
    ``comm/savings_vs_fp32``       bits of a ring all-reduce of float32 gradients, divided by the above
    ``comm/seconds``               time that one step spent on the vote, packing included
    =============================  ===================================================================

    Works with any strategy: without votes, the loss and the gradient norm are logged. The only
    communication is one all-reduce of 16 bytes on a step that logs. With several optimizers, the
    number of the optimizer is appended to the keys of ``sign_vote`` and ``comm``.

    Example:
        >>> trainer = Trainer(strategy="sign_vote", callbacks=[SignVoteMonitor()])  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._meters: list[_VoteMeter] = []
        self._gradient_norm: float | None = None

    def summary(self) -> dict[str, float]:
        """Means over all steps of the first optimizer's vote: agreement, bits_per_parameter, savings."""
        return self._meters[0].summary() if self._meters else {}

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._meters = [_VoteMeter(vote) for vote in _votes_of(trainer)]

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if _is_logging_step(trainer):
            self._gradient_norm = _gradient_norm(optimizer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for meter in self._meters:
            meter.update()
        if not _is_logging_step(trainer) or trainer.fit_loop._should_accumulate():
            return
        loss = _number(outputs.get("loss") if isinstance(outputs, dict) else outputs)
        if loss is not None:
            loss *= trainer.accumulate_grad_batches  # by which Lightning has divided it
        metrics = _mean_over_workers(trainer, {"loss/train": loss, "grad_norm/local": self._gradient_norm})
        self._gradient_norm = None
        for number, meter in enumerate(self._meters):
            suffix = f"/{number}" if len(self._meters) > 1 else ""
            metrics.update({f"{key}{suffix}": value for key, value in meter.since_last_log().items()})
        trainer.callback_metrics.update({key: torch.tensor(value) for key, value in metrics.items()})
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.fit_loop.epoch_loop._batches_that_stepped)


class _VoteMeter:
    """Differences of a vote's counters between two looks."""

    def __init__(self, vote: MajorityVote) -> None:
        self.vote = vote
        self._seen = vote.step
        self._steps = self._margin = self._votes = 0
        self._bytes_at_start = vote.traffic.bytes_sent
        self._logged_steps, self._logged_bytes, self._logged_seconds = 0, self._bytes_at_start, self._seconds

    @property
    def _seconds(self) -> float:
        return sum(self.vote.traffic.seconds.values())

    def update(self) -> None:
        """Add the last vote, if there was one since the last call."""
        if self.vote.last is None or self.vote.step == self._seen:
            return
        self._steps += 1
        self._seen = self.vote.step
        self._margin += self.vote.last.counts.margin
        self._votes += self.vote.last.counts.votes

    def _communication(self, sent: int, steps: int) -> dict[str, float]:
        assert self.vote.last is not None
        parameters, workers = self.vote.last.layout.num_parameters, self.vote.last.workers
        bits = sent * 8 / max(1, steps * parameters)
        values = {"bytes_sent": sent / steps, "bits_per_parameter": bits}
        if bits > 0:
            values["savings_vs_fp32"] = 32 * 2 * (workers - 1) / workers / bits
        return values

    def since_last_log(self) -> dict[str, float]:
        """What to log; nothing where no vote was cast since."""
        steps = self._steps - self._logged_steps
        if steps == 0 or self.vote.last is None:
            return {}
        sent, seconds = self.vote.traffic.bytes_sent, self._seconds
        communication = self._communication(sent - self._logged_bytes, steps)
        communication["seconds"] = (seconds - self._logged_seconds) / steps
        self._logged_steps, self._logged_bytes, self._logged_seconds = self._steps, sent, seconds
        votes = self.vote.last
        return {
            "sign_vote/agreement": votes.agreement,
            "sign_vote/tie_rate": votes.tie_rate,
            "sign_vote/abstain_rate": votes.abstain_rate,
            **{f"comm/{key}": value for key, value in communication.items()},
        }

    def summary(self) -> dict[str, float]:
        if self._steps == 0:
            return {}
        sent = self.vote.traffic.bytes_sent - self._bytes_at_start
        agreement = self._margin / self._votes if self._votes else float("nan")
        return {"agreement": agreement, **self._communication(sent, self._steps)}


def _votes_of(trainer: Trainer) -> list[MajorityVote]:
    votes = getattr(trainer.strategy, "votes", None)
    if votes is None:
        votes = [item.vote for item in trainer.strategy.optimizers if isinstance(item, SignOptimizer)]
    return list(votes)


def _is_logging_step(trainer: Trainer) -> bool:
    # Lightning's own rule less its `or trainer.should_stop`, which may be set on one rank alone:
    # then only that rank would enter the all-reduce
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by its logger connector
    return every > 0 and (trainer.fit_loop.epoch_loop._batches_that_stepped + 1) % every == 0


def _gradient_norm(optimizer: Optimizer) -> float:
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norms = [torch.linalg.vector_norm(gradient.detach().float()) for gradient in gradients]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (Tensor, float, int)) else None


def _mean_over_workers(trainer: Trainer, values: dict[str, float | None]) -> dict[str, float]:
    """Mean of each value over those workers that have one; a collective."""
    pairs = [(0.0, 0.0) if value is None else (value, 1.0) for value in values.values()]
    sums = trainer.strategy.reduce(
        torch.tensor(pairs, device=trainer.strategy.root_device), reduce_op="sum"
    ).tolist()
    return {key: total / count for key, (total, count) in zip(values, sums, strict=True) if count}
