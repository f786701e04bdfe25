"""The full gradient that finite-sum methods need, computed over the training data."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.data import extract_batch_size
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset
from tqdm.auto import tqdm  # type: ignore[import-untyped]
from typing_extensions import override

from lightning_signvr.optimizers import SnapshotOptimizer
from lightning_signvr.replay import Surroundings
from lightning_signvr.strategies.replaying import ReplayMixin


class SnapshotGradient(Callback):
    """Takes the snapshots of ``SignSVRG``, ``SignRVR``, ``SignRVM`` and ``SSVRFS``.

    Before a step for which the optimizer wants one (at the start, every ``period`` steps, and without a
    period once per epoch), the module's ``training_step`` runs over all of this worker's training data
    and the mean gradient is handed to the optimizer. The data come from a loader of its own, over the same
    dataset with the same batch size, in order and to the end; the Trainer's iterator is not touched.
    Nothing is logged twice; buffers, metrics and random numbers are put back.

    With Lightning's ``DistributedSampler`` each worker's share is the sampler's, without shuffling; that
    repeats a few samples where the data do not divide by the workers. Otherwise each worker's share is its
    whole dataset. Works with the ``sign_vote`` strategies and automatic optimization.

    Raises:
        RuntimeError: when training starts: another strategy, manual optimization, no such optimizer, more
            than one training loader, or an iterable dataset, which has no end that could be known.

    Example:
        >>> trainer = Trainer(strategy="sign_vote", callbacks=[SnapshotGradient()])  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._loader: DataLoader[Any] | None = None
        self._epoch = -1

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(trainer.strategy, ReplayMixin):
            raise RuntimeError(
                f"SnapshotGradient needs the sign_vote strategy, got {type(trainer.strategy).__name__}: use "
                'Trainer(strategy="sign_vote")'
            )
        if not pl_module.automatic_optimization:
            raise RuntimeError(
                "SnapshotGradient needs automatic optimization: with manual optimization call "
                "optimizer.take_snapshot() in training_step"
            )
        self._optimizer_of(trainer)
        self._loader = _loader_like(trainer.train_dataloader)
        self._epoch = -1

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches:
            return  # in the midst of a step
        optimizer = self._optimizer_of(trainer)
        new_epoch = trainer.current_epoch != self._epoch
        self._epoch = trainer.current_epoch
        if optimizer.snapshot_due or (optimizer.param_groups[0]["period"] is None and new_epoch):
            self._take(trainer, pl_module, optimizer)

    def _take(self, trainer: Trainer, module: LightningModule, optimizer: SnapshotOptimizer) -> None:
        assert self._loader is not None
        strategy: Any = trainer.strategy
        before = Surroundings.capture(module)
        try:
            with optimizer.take_snapshot():
                samples = len(self._loader.sampler)  # type: ignore[arg-type]
                for number, batch in enumerate(self._progress(trainer)):
                    on_device = strategy.batch_to_device(batch, dataloader_idx=0)
                    weight = extract_batch_size(on_device) / samples
                    strategy.add_gradient(on_device, number, weight)
                _unscale(optimizer, getattr(trainer.precision_plugin, "scaler", None))
        finally:
            before.restore()

    def _progress(self, trainer: Trainer) -> Any:
        hidden = trainer.progress_bar_callback is None or not trainer.is_global_zero
        return tqdm(self._loader, desc="Full gradient", leave=False, disable=hidden)

    @staticmethod
    def _optimizer_of(trainer: Trainer) -> SnapshotOptimizer:
        [optimizer] = trainer.strategy.optimizers
        if not isinstance(optimizer, SnapshotOptimizer):
            raise RuntimeError(
                f"SnapshotGradient serves finite-sum optimizers (SignSVRG, SignRVR, SignRVM, SSVRFS), got "
                f"{type(optimizer).__name__}: remove the callback, or return one of them"
            )
        return optimizer


def _loader_like(loader: Any) -> DataLoader[Any]:
    """A loader over the same samples of this worker, in order, to the end."""
    if not isinstance(loader, DataLoader):
        raise RuntimeError(
            f"SnapshotGradient needs a single training DataLoader, got {type(loader).__name__}: with several "
            "loaders call optimizer.take_snapshot() yourself"
        )
    if isinstance(loader.dataset, IterableDataset):
        raise RuntimeError(
            "SnapshotGradient needs a dataset of known length, got an IterableDataset: use a map-style "
            "dataset, or a method without full gradients (SSVR)"
        )
    sampler = loader.sampler
    share: DistributedSampler[Any] | None = None
    if isinstance(sampler, DistributedSampler):
        share = DistributedSampler(
            loader.dataset, num_replicas=sampler.num_replicas, rank=sampler.rank, shuffle=False
        )
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=share,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        generator=torch.Generator(),  # so that the global generator is not drawn from
    )


def _unscale(optimizer: SnapshotOptimizer, scaler: Any) -> None:
    """Divide the summed gradients by the loss scale."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if scaler is not None:
        for gradient in gradients:
            gradient.div_(scaler.get_scale())
    if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
        raise RuntimeError(
            "the full gradient of the snapshot is not finite: lower the GradScaler's init_scale, "
            'train with precision="bf16-mixed", or look for NaN in the data'
        )
