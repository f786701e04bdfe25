"""What all workers do, or none: an error of one is an error of all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from lightning_signvr.voting.failures import explained
from lightning_signvr.voting.group import world


class Together:
    """The workers of a process group, or this process alone.

    Args:
        group: the workers; None for all.
        device: where the group's backend can exchange tensors.

    Attributes:
        rank: of this worker in the group.
        workers: how many there are.

    Example:
        >>> Together().exchange(3, 4)
        [[3, 4]]
    """

    def __init__(self, group: dist.ProcessGroup | None = None, device: torch.device | str = "cpu") -> None:
        self.rank, self.workers = world(group)
        self._group, self._device = group, device

    def exchange(self, *numbers: int) -> list[list[int]]:
        """What each rank says, in the order of the ranks; a collective. All say equally many numbers."""
        if self.workers == 1:
            return [list(numbers)]
        mine = torch.tensor(numbers, dtype=torch.int64, device=self._device)
        everyones = [torch.empty_like(mine) for _ in range(self.workers)]
        with explained("an exchange of all workers, as for a checkpoint,", self._group):
            dist.all_gather(everyones, mine, group=self._group)
        return [row.tolist() for row in everyones]

    @contextmanager
    def or_nobody(self, what: str) -> Iterator[None]:
        """Where the block raises on one rank, it raises on all; a collective, at the end of the block.

        Args:
            what: the block does, for the message on the ranks where it went well.

        Raises:
            RuntimeError: it raised on another rank.
        """
        try:
            yield
        except Exception:
            self.exchange(0)
            raise
        failed = [rank for rank, [went_well] in enumerate(self.exchange(1)) if not went_well]
        if failed:
            ranks = ", ".join(map(str, failed))
            raise RuntimeError(f"{what} failed on rank(s) {ranks}: what they raised says why")
