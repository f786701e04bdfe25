"""The large first batch that variance reduction's theorems ask for."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lightning_signvr.callbacks.data_pass import DataPass
from lightning_signvr.optimizers.checks import check_count
from lightning_signvr.optimizers.first_batch import FirstBatchOptimizer
from lightning_signvr.voting.rules import check_seed


class LargeFirstBatch(DataPass):
    """Begins the estimates of SSVR, SSVRMV, DVRSign and DVRQ with a larger batch.

    Before the first step the module's ``training_step`` runs over some batches of this worker's training
    data, and their mean gradient takes the place of the first step's own. They come from a loader of its own,
    over the same dataset with the same batch size, shuffled by a seed; the Trainer's iterator is not
    touched. Nothing is logged twice; buffers, metrics and random numbers are put back. A run that is resumed
    has its estimates already: there it does nothing.

    With Lightning's ``DistributedSampler`` each worker draws from its share of the data, else from its whole
    dataset, in an order of its own. Works with automatic optimization under the ``sign_vote`` strategies, and
    under others beside :class:`~lightning_signvr.callbacks.second_gradient.SecondGradient`.

    Args:
        batches: how many, on each worker, at least 1 and at most those in a pass over its share.
        seed: of the order in which they are drawn.

    Raises:
        RuntimeError: when training starts: fewer batches than ``batches``, another strategy, manual
            optimization, no such optimizer, more than one training loader, or an iterable dataset.

    Example:
        >>> trainer = Trainer(strategy="sign_vote", callbacks=[LargeFirstBatch(20)])  # doctest: +SKIP
    """

    optimizer_class = FirstBatchOptimizer
    names = "optimizers whose estimate begins at the first gradient (SSVR, SSVRMV, DVRSign, DVRQ)"
    method = "large_first_batch"

    def __init__(self, batches: int, seed: int = 0) -> None:
        check_count("batches", batches)
        check_seed(seed)
        self.batches = batches
        self.seed = seed
        self._due = False

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._due = self.optimizer_of(trainer).param_groups[0]["step"] == 0
        if self.batches > len(self._loader):
            raise RuntimeError(
                f"batches must be at most {len(self._loader)}, a pass over this worker's training data, got "
                f"{self.batches}"
            )

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self._due:
            return
        self._due = False
        with self.optimizer_of(trainer).large_first_batch():
            self.add_mean_gradient(trainer, pl_module, "First batch", self.batches)
