"""What optimizers with error feedback share: the scaled sign, and what it leaves out."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from typing_extensions import override

from lightning_signvr.optimizers.scaled import ScaledOptimizer


class ErrorFeedbackOptimizer(ScaledOptimizer):
    """Workers send ``(||p||_1 / numel) sign(p)`` of ``p = g + e`` per tensor and keep the rest as ``e``."""

    @override
    def encode(self, direction: Tensor, group: dict[str, Any], index: int) -> Tensor:
        sent = self.send_scale(index, direction.abs().mean() if direction.numel() else direction.sum())
        signs = direction.sign()
        direction.sub_(signs, alpha=sent)  # the error buffer itself: what is left out
        return signs
