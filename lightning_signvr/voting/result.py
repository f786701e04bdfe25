"""What a vote decided, still packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_signvr.signs import Counts, add_signs_, unpack_signs
from lightning_signvr.voting.layout import Layout


@dataclass
class VotedSigns:
    """The aggregated sign of each coordinate, identical on all ranks.

    The planes belong to the vote and are overwritten by its next call.

    Attributes:
        layout: where each tensor's bits are.
        shapes: of the tensors.
        negative: uint8 plane, 1 where the vote is -1.
        undecided: uint8 plane, 1 where nothing was decided; None where there is no such coordinate.
        present: per tensor, whether any worker voted on it. An optimizer leaves the others alone.
        counts: sums over all coordinates.
        workers: number of workers that could vote.
    """

    layout: Layout
    shapes: Sequence[torch.Size]
    negative: Tensor
    undecided: Tensor | None
    present: Sequence[bool]
    counts: Counts
    workers: int

    def _planes(self, index: int) -> tuple[Tensor, Tensor | None]:
        part = self.layout.part(index)
        return self.negative[part], None if self.undecided is None else self.undecided[part]

    def signs(self, index: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Tensor ``index`` of the vote as -1, 0 and +1 in its own shape; all 0 where nobody voted."""
        if not self.present[index]:
            return torch.zeros(self.shapes[index], dtype=dtype, device=self.negative.device)
        negative, zeros = self._planes(index)
        return unpack_signs(negative, self.layout.numels[index], dtype, zeros).view(self.shapes[index])

    def add_to_(self, index: int, target: Tensor, alpha: float, decay: float = 1.0) -> Tensor:
        """``target = decay * target + alpha * vote`` in place; untouched where nobody voted."""
        if not self.present[index]:
            return target
        negative, zeros = self._planes(index)
        return add_signs_(target, negative, alpha, zeros=zeros, decay=decay)

    @property
    def agreement(self) -> float:
        """Mean of ``|sum of signs| / voters``, weighted by voters: 1 if all agree, NaN if nobody voted.

        n fair coins have an agreement of about ``0.8 / sqrt(n)``: that is what pure noise looks like.
        """
        return self.counts.margin / self.counts.votes if self.counts.votes else float("nan")

    @property
    def tie_rate(self) -> float:
        """Share of the coordinates that were tied."""
        return self.counts.ties / max(1, self.layout.num_parameters)

    @property
    def abstain_rate(self) -> float:
        """Share of the possible votes that were not cast."""
        possible = self.layout.num_parameters * self.workers
        return 1.0 - self.counts.votes / possible if possible else 0.0
