"""Gradients over more of the training data than a step has: what two callbacks share."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)
from tqdm.auto import tqdm  # type: ignore[import-untyped]
from typing_extensions import override

from lightning_signvr.optimizers import AnchoredOptimizer
from lightning_signvr.optimizers.gathering import trained_parameters
from lightning_signvr.replay import Surroundings
from lightning_signvr.signs.finite import is_finite
from lightning_signvr.strategies.replaying import ReplayMixin


class DataPass(Callback, ABC):
    """A callback that runs the module's ``training_step`` over training data, apart from the training.

    The data come from a loader of its own, over the same dataset with the same batch size; the Trainer's
    iterator is not touched. Nothing is logged twice; buffers, metrics and random numbers are put back.

    With Lightning's ``DistributedSampler`` each worker's share is the sampler's, which repeats a few samples
    where the data do not divide by the workers. Otherwise each worker's share is its whole dataset.

    Attributes:
        optimizer_class: what it serves.
        names: of those optimizers, for a message.
        method: of the optimizer, that a user may call instead.
        seed: of the order of the data, the same on all ranks; None for the dataset's order.
    """

    optimizer_class: type[AnchoredOptimizer]
    names: str
    method: str
    seed: int | None = None
    _loader: DataLoader[Any]

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        name = type(self).__name__
        if not isinstance(trainer.strategy, ReplayMixin):
            raise RuntimeError(
                f"{name} needs the sign_vote strategy, got {type(trainer.strategy).__name__}: use "
                'Trainer(strategy="sign_vote"), or add SecondGradient() to the callbacks'
            )
        if not pl_module.automatic_optimization:
            raise RuntimeError(
                f"{name} needs automatic optimization: with manual optimization call "
                f"optimizer.{self.method}() in training_step"
            )
        self.optimizer_of(trainer)
        self._loader = self._own_loader(trainer)

    def optimizer_of(self, trainer: Trainer) -> Any:
        """The optimizer that is served.

        Raises:
            RuntimeError: it is of another kind.
        """
        [optimizer] = trainer.strategy.optimizers
        if not isinstance(optimizer, self.optimizer_class):
            raise RuntimeError(
                f"{type(self).__name__} serves {self.names}, got {type(optimizer).__name__}: remove the "
                "callback, or return one of them"
            )
        return optimizer

    def add_mean_gradient(
        self, trainer: Trainer, module: LightningModule, title: str, batches: int | None = None
    ) -> None:
        """Compute the mean gradient over the data, in ``.grad``, which must be empty.

        Args:
            trainer, module: as a callback gets them.
            title: of the progress bar.
            batches: how many; None for all.

        Raises:
            RuntimeError: it is not finite.
        """
        strategy: Any = trainer.strategy
        parameters = trained_parameters(self.optimizer_of(trainer))
        before = Surroundings.capture(module)
        total = 0
        try:
            for number, batch in enumerate(self._progress(trainer, title, batches)):
                on_device = strategy.batch_to_device(batch, dataloader_idx=0)
                samples = extract_batch_size(on_device)
                total += samples
                for parameter in parameters:  # a running mean: the sizes are known one by one
                    if parameter.grad is not None:
                        parameter.grad.mul_(1 - samples / total)
                strategy.add_gradient(on_device, number, samples / total)
            names: dict[Tensor, str] = {value: name for name, value in module.named_parameters()}
            _unscale(parameters, getattr(trainer.precision_plugin, "scaler", None), names)
        finally:
            before.restore()

    def _progress(self, trainer: Trainer, title: str, batches: int | None) -> Any:
        hidden = trainer.progress_bar_callback is None or not trainer.is_global_zero
        total = len(self._loader) if batches is None else batches
        return tqdm(islice(self._loader, total), desc=title, total=total, leave=False, disable=hidden)

    def _own_loader(self, trainer: Trainer) -> DataLoader[Any]:
        """A loader over the same samples of this worker, to the end."""
        name, loader = type(self).__name__, trainer.train_dataloader
        if not isinstance(loader, DataLoader):
            raise RuntimeError(
                f"{name} needs a single training DataLoader, got {type(loader).__name__}: with several "
                f"loaders call optimizer.{self.method}() yourself"
            )
        if isinstance(loader.dataset, IterableDataset):
            raise RuntimeError(
                f"{name} needs a dataset of known length, got an IterableDataset: use a map-style dataset, "
                "or a method without such a pass over the data"
            )
        size = loader.batch_size
        if size is None and loader.batch_sampler is not None:
            size = getattr(loader.batch_sampler, "batch_size", None)
            if not isinstance(size, int):
                raise RuntimeError(
                    f"{name} cannot tell the batch size of {type(loader.batch_sampler).__name__}: give it an "
                    "attribute batch_size, or pass batch_size to the DataLoader"
                )
        # Lightning wraps samplers that it does not know in a subclass of DistributedSampler
        if type(loader.sampler) not in (SequentialSampler, RandomSampler, DistributedSampler):
            raise RuntimeError(
                f"{name} passes over all samples of a dataset, and {type(loader.sampler).__name__} may leave "
                "some out or repeat them: pass a torch.utils.data.Subset and shuffle=True to the DataLoader "
                f"in its place, or call optimizer.{self.method}() yourself"
            )
        replicas, rank, seed = 1, 0, (self.seed or 0) + trainer.global_rank
        if isinstance(loader.sampler, DistributedSampler):
            replicas, rank, seed = loader.sampler.num_replicas, loader.sampler.rank, self.seed or 0
        return DataLoader(
            loader.dataset,
            batch_size=size,
            sampler=DistributedSampler(loader.dataset, replicas, rank, self.seed is not None, seed),
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            generator=torch.Generator(),  # so that the global generator is not drawn from
        )


def _unscale(parameters: Sequence[Tensor], scaler: Any, names: dict[Tensor, str]) -> None:
    """Divide the gradients by the loss scale."""
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if scaler is not None:
            parameter.grad.div_(scaler.get_scale())
        if not is_finite(parameter.grad):
            raise RuntimeError(
                f"the mean gradient of {names.get(parameter, 'a parameter')} over the training data is not "
                "finite: look for NaN in this worker's data; with float16 lower the GradScaler's init_scale "
                'or train with precision="bf16-mixed"'
            )
