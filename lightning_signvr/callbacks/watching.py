"""What the monitors share: when to look, whom to look at, where to write."""

from __future__ import annotations

import logging
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_signvr.connecting import unwrapped
from lightning_signvr.optimizers import SignOptimizer
from lightning_signvr.optimizers.gathering import trained_parameters
from lightning_signvr.voting import MajorityVote, VoteDetails

log = logging.getLogger(__name__)


class Monitor(Callback, ABC):
    """A callback that looks at the steps that ``Trainer(log_every_n_steps)`` logs.

    Subclasses look at a step as it happens in :meth:`before_step`, and say in :meth:`of_this_worker` and
    :meth:`of_all_workers` what they saw.
    """

    needs_votes: bool = False
    _voters: Sequence[tuple[Optimizer, MajorityVote]] = ()
    _cast: Sequence[int] = ()  # votes of each voter before the step that is running
    _observed: tuple[tuple[SignOptimizer, Callable[[Tensor, Tensor], None]], ...] = ()

    def start(self, trainer: Trainer, module: LightningModule) -> None:
        """Called when training starts."""
        self._voters = voters_of(trainer)
        self._cast = [vote.traffic.votes for _, vote in self._voters]
        if self.needs_votes and not self._voters:
            log.warning(
                "%s has nothing to show: no optimizer votes under %s. Use "
                'Trainer(strategy="sign_vote") or an optimizer of lightning_signvr.',
                type(self).__name__, type(trainer.strategy).__name__,
            )  # fmt: skip

    def before_step(self, trainer: Trainer, optimizer: Optimizer) -> None:
        """Called before an optimizer's step that is to be logged; gradients are unscaled, not clipped."""

    def observe(self, optimizer: SignOptimizer, look: Callable[[Tensor, Tensor], None]) -> None:
        """Call ``look(parameter, estimate)`` in the step that comes; in place of an earlier one."""
        self._unobserve(optimizer)
        optimizer.observers = (*optimizer.observers, look)
        self._observed = (*self._observed, (optimizer, look))

    def _unobserve(self, *optimizers: SignOptimizer) -> None:
        for optimizer, look in self._observed:
            if optimizer in optimizers:
                optimizer.observers = tuple(other for other in optimizer.observers if other is not look)
        self._observed = tuple(pair for pair in self._observed if pair[0] not in optimizers)

    def after_step(self, trainer: Trainer) -> None:
        """Called after every step of the trainer, logged or not."""

    def of_this_worker(self, trainer: Trainer, outputs: Any) -> dict[str, float | None]:
        """Values of this worker for the log, None for unknown; their mean over the workers is logged.

        The keys must be the same on all workers.
        """
        return {}

    def of_all_workers(self, trainer: Trainer) -> dict[str, float]:
        """Values for the log that need no mean: the same on all workers, or meant to be rank 0's."""
        return {}

    def show(self, trainer: Trainer, step: int) -> None:
        """Called after a logged step, for what is not a number: pictures, texts."""

    # -- Lightning's hooks ------------------------------------------------------------------------

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start(trainer, pl_module)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        for optimizer, _ in self._voters:  # what is asked for before a step would come after the vote began
            overlapped = getattr(optimizer, "overlapped", None)
            if overlapped is not None:
                overlapped.is_paused = is_logging_step(trainer)

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if is_logging_step(trainer):
            self.before_step(trainer, unwrapped(optimizer))

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        if is_logging_step(trainer):
            values = mean_over_workers(trainer, self.of_this_worker(trainer, outputs))
            values.update(self.of_all_workers(trainer))
            write(trainer, values)
            self.show(trainer, logged_step(trainer))
        self.finish_step(trainer)

    def has_voted(self, number: int) -> bool:
        """Whether a voter has voted in this step; it has not where a loss scale made it skip the step."""
        return self._voters[number][1].traffic.votes != self._cast[number]

    def finish_step(self, trainer: Trainer) -> None:
        self._unobserve(*(optimizer for optimizer, _ in self._observed))
        self.after_step(trainer)
        self._cast = [vote.traffic.votes for _, vote in self._voters]


def voters_of(trainer: Trainer) -> list[tuple[Optimizer, MajorityVote]]:
    """The optimizers that vote, unwrapped, and their votes; none under a strategy that does not vote."""
    optimizers = [unwrapped(item) for item in trainer.strategy.optimizers]
    votes = getattr(trainer.strategy, "votes", None)
    if votes is not None:
        return list(zip(optimizers, votes, strict=True))
    return [(item, item.vote) for item in optimizers if isinstance(item, SignOptimizer)]


def is_logging_step(trainer: Trainer, ahead: int = 0) -> bool:
    """Whether the step that is running, or the one ``ahead`` steps later, is one that the trainer logs."""
    # Lightning's own rule less its `or trainer.should_stop`, which may be set on one rank alone:
    # then only that rank would enter a collective
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by its logger connector
    return every > 0 and (trainer.fit_loop.epoch_loop._batches_that_stepped + 1 + ahead) % every == 0


def logged_step(trainer: Trainer) -> int:
    """The step axis that Lightning's own logs have."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def write(trainer: Trainer, values: Mapping[str, float]) -> None:
    """To every logger, and to ``trainer.callback_metrics``."""
    trainer.callback_metrics.update({key: torch.tensor(value) for key, value in values.items()})
    if not values:
        return
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=logged_step(trainer))


def mean_over_workers(trainer: Trainer, values: Mapping[str, float | None]) -> dict[str, float]:
    """Mean of each value over those workers that have one; a collective where there are values."""
    if not values:
        return {}
    pairs = [(0.0, 0.0) if value is None else (value, 1.0) for value in values.values()]
    sums = trainer.strategy.reduce(
        torch.tensor(pairs, device=trainer.strategy.root_device), reduce_op="sum"
    ).tolist()
    return {key: total / count for key, (total, count) in zip(values, sums, strict=True) if count}


def numbered(key: str, number: int, count: int) -> str:
    """``key``, with the optimizer's number where there are several."""
    return f"{key}/{number}" if count > 1 else key


def layers_of(optimizer: Optimizer, module: nn.Module) -> dict[str, list[int]]:
    """Name of each layer that has parameters of its own, and their places among those voted on.

    A parameter that is not the module's is a layer by its place.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    layers: dict[str, list[int]] = {}
    for index, parameter in enumerate(trained_parameters(optimizer)):
        name = names.get(parameter, f"parameter {index}")
        layers.setdefault(name.rpartition(".")[0] or name, []).append(index)
    return layers


def layer_agreements(details: VoteDetails, optimizer: Optimizer, module: nn.Module) -> dict[str, float]:
    """Agreement within each layer; NaN where nobody voted."""
    layers = layers_of(optimizer, module).items()
    return {name: details.counts_of(indices).agreement for name, indices in layers}
