"""The full gradient that finite-sum methods need, computed over the training data."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lightning_signvr.callbacks.data_pass import DataPass
from lightning_signvr.optimizers import SnapshotOptimizer


class SnapshotGradient(DataPass):
    """Takes the snapshots of SignSVRG, SignRVR, SignRVM, SSVRFS, DVRSignFS and DVRQFS.

    Before a step for which the optimizer wants one (at the start, every ``period`` steps, and without a
    period once per epoch), the module's ``training_step`` runs over all of this worker's training data
    and the mean gradient is handed to the optimizer. The data come from a loader of its own, over the same
    dataset with the same batch size, in order and to the end; the Trainer's iterator is not touched.
    Nothing is logged twice; buffers, metrics and random numbers are put back.

    With Lightning's ``DistributedSampler`` each worker's share is the sampler's, without shuffling; that
    repeats a few samples where the data do not divide by the workers. Otherwise each worker's share is its
    whole dataset. Works with automatic optimization under the ``sign_vote`` strategies, and under others
    beside :class:`~lightning_signvr.callbacks.second_gradient.SecondGradient`.

    Raises:
        RuntimeError: when training starts: another strategy, manual optimization, no such optimizer, more
            than one training loader, or an iterable dataset, which has no end that could be known.

    Example:
        >>> trainer = Trainer(strategy="sign_vote", callbacks=[SnapshotGradient()])  # doctest: +SKIP
    """

    optimizer_class = SnapshotOptimizer
    names = "finite-sum optimizers (SignSVRG, SignRVR, SignRVM, SSVRFS, DVRSignFS, DVRQFS)"
    method = "take_snapshot"

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._epoch = -1

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches:
            return  # in the midst of a step
        optimizer = self.optimizer_of(trainer)
        new_epoch = trainer.current_epoch != self._epoch
        self._epoch = trainer.current_epoch
        if optimizer.snapshot_due or (optimizer.param_groups[0]["period"] is None and new_epoch):
            with optimizer.take_snapshot():
                self.add_mean_gradient(trainer, pl_module, "Full gradient")
