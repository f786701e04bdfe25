"""A collective that is under way, and what can go wrong with it."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_signvr.voting.failures import explained

Collective = Callable[..., "dist.Work | None"]


class Pending:
    """Starts a collective.

    Args:
        collective: sends ``source`` and fills ``output``, whose row ``r`` comes from rank ``r``.
        output, source: contiguous; ``source`` has a row for each rank, or one for all.
        group: the ranks; None for all.
        purpose: for messages.
        verify: whether checksums travel in a second collective, and are compared.

    Attributes:
        checksums: what travels beside it; None for nothing.

    Raises:
        RuntimeError: a rank died, or the connection broke.
    """

    def __init__(
        self,
        collective: Collective,
        output: Tensor,
        source: Tensor,
        group: dist.ProcessGroup | None,
        purpose: str,
        verify: bool,
    ) -> None:
        self._output, self._group, self._purpose = output, group, purpose
        self.checksums = _checksums(source) if verify else None
        with explained(purpose, group):
            self._works = [collective(output.view(-1), source.view(-1), group=group, async_op=True)]
            if self.checksums is not None:
                self._theirs = self.checksums.new_empty(len(output))
                self._works.append(collective(self._theirs, self.checksums, group=group, async_op=True))

    @property
    def is_completed(self) -> bool:
        """Whether :meth:`wait` need not wait."""
        return all(work is None or work.is_completed() for work in self._works)

    def wait(self) -> None:
        """Wait until the output is there.

        Raises:
            RuntimeError: a rank died or hangs, the connection broke, or what a rank sent was damaged on the
                way.
        """
        with explained(self._purpose, self._group):
            for work in self._works:
                if work is not None:
                    work.wait()
        if self.checksums is None:
            return
        arrived = _checksums(self._output)
        if not torch.equal(arrived, self._theirs):
            damaged = (arrived != self._theirs).nonzero().view(-1).tolist()
            group = self._group or dist.group.WORLD
            assert group is not None
            names = ", ".join(f"rank {dist.get_global_rank(group, rank)}" for rank in damaged)
            raise RuntimeError(
                f"{self._purpose}: what {names} sent was damaged on the way, its checksum is another one: "
                "look for faulty memory or network hardware on the two machines, and resume from a checkpoint"
            )


def _checksums(rows: Tensor) -> Tensor:
    """int64, the CRC-32 of each row; of one row where ``rows`` has a single dimension."""
    data = rows.view(1, -1) if rows.dim() == 1 else rows
    arrays = data.view(torch.uint8).cpu().numpy()
    return torch.tensor([zlib.crc32(array.data) for array in arrays], device=rows.device)
