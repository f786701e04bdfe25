"""Whether all workers still hold the same parameters."""

from __future__ import annotations

import logging
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_signvr.voting.failures import explained

log = logging.getLogger(__name__)

OnMismatch = Literal["warn", "raise", "repair"]


class ReplicaCheck(Callback):
    """Compare a hash of each parameter among the workers, every so many steps.

    Replicas start equal and every vote moves them alike, so that they must stay equal to the last bit; code
    that changes parameters on one rank alone, faulty memory or a broken network part them, and nothing else
    would say so. Each worker sends 8 bytes per parameter tensor. Buffers are not compared: BatchNorm's
    statistics differ between workers.

    Args:
        every_n_steps: optimizer steps between two checks, at least 1.
        on_mismatch: ``"warn"``; ``"raise"``, on all workers; or ``"repair"``: warn, and copy the parameters
            that most workers agree on to the others (among equally many, those of the lowest rank). Optimizer
            states are each worker's own and are left alone.

    Attributes:
        mismatches: parameters that differed so far, counted once per check.

    Raises:
        ValueError: a number below 1, an unknown action.
        RuntimeError: while training, with ``"raise"``: replicas differ; names parameters and ranks.

    Example:
        >>> trainer = Trainer(strategy="sign_vote", callbacks=[ReplicaCheck(500)])  # doctest: +SKIP
    """

    def __init__(self, every_n_steps: int = 1000, on_mismatch: OnMismatch = "warn") -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        if on_mismatch not in get_args(OnMismatch):
            choices = ", ".join(map(repr, get_args(OnMismatch)))
            raise ValueError(f"on_mismatch must be one of {choices}, got {on_mismatch!r}")
        self.every_n_steps, self.on_mismatch = every_n_steps, on_mismatch
        self.mismatches = 0

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        steps = trainer.fit_loop.epoch_loop._batches_that_stepped + 1
        if not trainer.fit_loop._should_accumulate() and steps % self.every_n_steps == 0:
            self.check(pl_module, trainer.strategy.root_device)

    @torch.no_grad()
    def check(self, module: torch.nn.Module, device: torch.device | str = "cpu") -> list[str]:
        """Compare now; a collective.

        Args:
            module: whose parameters are compared.
            device: where the process group can exchange tensors.

        Returns:
            Names of the parameters that differ.
        """
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return []
        parameters = dict(module.named_parameters())
        mine = torch.tensor([fingerprint(p) for p in parameters.values()], dtype=torch.int64, device=device)
        everyones = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        with explained("comparing replicas", None):
            dist.all_gather(everyones, mine)
        table = torch.stack(everyones, 1).tolist()  # [parameters, workers]
        differing = {name: row for name, row in zip(parameters, table, strict=True) if len(set(row)) > 1}
        if differing:
            self.mismatches += len(differing)
            self._tell(differing, len(table))
            if self.on_mismatch == "repair":
                for name, row in differing.items():
                    _broadcast(parameters[name], most_common(row)[0], device)
        return list(differing)

    def _tell(self, differing: dict[str, list[int]], count: int) -> None:
        odd = sorted({rank for row in differing.values() for rank in most_common(row)[1]})
        names = ", ".join(list(differing)[:5]) + (", ..." if len(differing) > 5 else "")
        message = (
            f"the workers' replicas differ in {len(differing)} of {count} parameters ({names}): rank(s) "
            f"{', '.join(map(str, odd))} against the others. Something changed parameters on one rank alone, "
            "or memory is faulty"
        )
        if self.on_mismatch == "raise":
            raise RuntimeError(f"{message}; resume from the last checkpoint")
        repaired = "; they were set to what most workers have" if self.on_mismatch == "repair" else ""
        if dist.get_rank() == 0:
            log.warning("%s%s", message, repaired)


def fingerprint(values: Tensor) -> int:
    """CRC-32 of the values' bytes: it changes for certain where up to 32 bits in a row do.

    Example:
        >>> fingerprint(torch.tensor([0.0, 1.0])) == fingerprint(torch.tensor([-0.0, 1.0]))
        False
    """
    flat = values.detach().cpu().contiguous().view(-1)
    return zlib.crc32(flat.view(torch.uint8).numpy().data) if flat.numel() else 0


def most_common(row: Sequence[int]) -> tuple[int, list[int]]:
    """The lowest rank that holds what most hold, and the ranks that hold something else.

    Example:
        >>> most_common([7, 8, 8])
        (1, [0])
    """
    [(value, _)] = Counter(row).most_common(1)  # the first among equally common ones
    return row.index(value), [rank for rank, other in enumerate(row) if other != value]


def _broadcast(parameter: Tensor, source: int, device: torch.device | str) -> None:
    values = parameter.detach().to(device).contiguous()
    dist.broadcast(values, source)
    parameter.copy_(values)
