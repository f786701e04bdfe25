"""The gradient as it is: signSGD."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


class RawGradient:
    """``v_t = g_t``; no state."""

    def __call__(
        self,
        gradient: Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
        at: Mapping[str, Tensor],
    ) -> Tensor:
        return gradient
