"""All monitors with sensible defaults: what most people want to see."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_signvr.callbacks.communication import CommunicationMonitor
from lightning_signvr.callbacks.gradient_norm import GradientNormMonitor
from lightning_signvr.callbacks.sign_agreement import SignAgreementMonitor
from lightning_signvr.callbacks.tensorboard import (
    LAYOUT,
    add_hyperparameters,
    as_table,
    is_tensorboard,
    settings_of,
    writers_of,
)
from lightning_signvr.callbacks.variance_reduction import VarianceReductionMonitor
from lightning_signvr.callbacks.watching import Monitor


class SignVoteMonitor(Monitor):
    """Log loss, gradient norms, sign agreement and communication, every ``Trainer(log_every_n_steps)`` steps.

    Bundles :class:`GradientNormMonitor`, :class:`SignAgreementMonitor`, :class:`CommunicationMonitor` and
    :class:`VarianceReductionMonitor`, whose pages list the keys, and adds

    * ``loss/train``, the mean over the workers of the last microbatch's loss;
    * for TensorBoard a *custom scalars* page with the charts that matter, a text panel that says what ran,
      and, at the end, hyper-parameters with the final metrics;
    * for other loggers the same settings as hyper-parameters.

    Works with any logger and any strategy: without votes, loss and gradient norms are logged. A step that
    logs exchanges one small all-reduce, and one more for the variances.

    Args:
        per_layer: whether agreement and gradient norm are logged for each layer too.

    Example:
        >>> trainer = Trainer(strategy="sign_vote", callbacks=[SignVoteMonitor()])  # doctest: +SKIP
    """

    def __init__(self, per_layer: bool = True) -> None:
        self._communication = CommunicationMonitor()
        self._parts: list[Monitor] = [
            GradientNormMonitor(per_layer=per_layer),
            SignAgreementMonitor(per_layer=per_layer),
            self._communication,
            VarianceReductionMonitor(),
        ]
        for part in self._parts:
            part.needs_votes = False  # the other parts have something to show
        self._settings: dict[str, Any] = {}

    def summary(self) -> dict[str, float]:
        """Means over all steps of the first optimizer's vote: agreement, bits_per_parameter, savings."""
        return self._communication.summary()

    @override
    def start(self, trainer: Trainer, module: LightningModule) -> None:
        super().start(trainer, module)
        for part in self._parts:
            part.start(trainer, module)
        if not self._voters or not trainer.is_global_zero:
            return
        self._settings = settings_of(trainer, self._voters)
        for writer in writers_of(trainer):
            writer.add_custom_scalars(LAYOUT)
            writer.add_text("sign_vote/settings", as_table(self._settings))
        for logger in trainer.loggers:
            if not is_tensorboard(logger):
                logger.log_hyperparams(self._settings)

    @override
    def before_step(self, trainer: Trainer, optimizer: Optimizer) -> None:
        for part in self._parts:
            part.before_step(trainer, optimizer)

    @override
    def after_step(self, trainer: Trainer) -> None:
        for part in self._parts:
            part.finish_step(trainer)

    @override
    def of_this_worker(self, trainer: Trainer, outputs: Any) -> dict[str, float | None]:
        loss = _number(outputs.get("loss") if isinstance(outputs, dict) else outputs)
        if loss is not None:
            loss *= trainer.accumulate_grad_batches  # by which Lightning has divided it
        values: dict[str, float | None] = {"loss/train": loss}
        for part in self._parts:
            values.update(part.of_this_worker(trainer, outputs))
        return values

    @override
    def of_all_workers(self, trainer: Trainer) -> dict[str, float]:
        return {key: value for part in self._parts for key, value in part.of_all_workers(trainer).items()}

    @override
    def show(self, trainer: Trainer, step: int) -> None:
        for part in self._parts:
            part.show(trainer, step)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for part in self._parts:
            part.on_train_end(trainer, pl_module)
        if not self._settings or not trainer.is_global_zero:
            return
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if key.count("/") < 2}
        for writer in writers_of(trainer):
            add_hyperparameters(writer, self._settings, metrics)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (Tensor, float, int)) else None
