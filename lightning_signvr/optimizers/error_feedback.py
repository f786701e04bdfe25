"""What optimizers with error feedback share: the scaled sign, and what it leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from typing_extensions import override

from lightning_signvr.optimizers.scaled import ScaledOptimizer
from lightning_signvr.voting import VotedSigns


class ErrorFeedbackOptimizer(ScaledOptimizer):
    """Workers send ``(||p||_1 / numel) sign(p)`` of ``p = g + e`` per tensor and keep the rest as ``e``."""

    @override
    def encode(self, direction: Tensor, group: dict[str, Any], index: int) -> Tensor:
        self.send_scale(index, direction.abs().mean())
        return direction

    @override
    def cast(
        self,
        directions: Sequence[Tensor | None],
        parameters: Sequence[Tensor],
        groups: Sequence[dict[str, Any]],
    ) -> VotedSigns:
        scales = dict(self._scales)
        votes = super().cast(directions, parameters, groups)
        for index, direction in enumerate(directions):
            if direction is not None:  # the error buffer itself
                direction.sub_(direction.sign(), alpha=scales[index])
        return votes
