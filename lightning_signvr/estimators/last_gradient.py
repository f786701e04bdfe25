"""The gradient of the last step, for estimators that use it instead of a second evaluation."""

from __future__ import annotations

from typing import Any

from torch import Tensor

LAST_GRADIENT = "last_gradient"


def remember_gradient(gradient: Tensor, state: dict[str, Any]) -> None:
    """Keep a copy in ``state``: torch may reuse the gradient's memory. Overwrites the one before."""
    if LAST_GRADIENT in state:
        state[LAST_GRADIENT].copy_(gradient)
    else:
        state[LAST_GRADIENT] = gradient.clone()
