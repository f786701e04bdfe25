"""The gradient as it is: signSGD."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class RawGradient:
    """``v_t = g_t``; no state."""

    def __call__(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        return gradient
