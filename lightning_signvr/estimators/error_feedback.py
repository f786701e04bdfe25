"""Error feedback: what compression left out is added to the next gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_signvr.estimators.momentum import state_dtype


class ErrorFeedback:
    """``p_t = g_t + e_t``; the optimizer then leaves ``e_{t+1} = p_t - compressed(p_t)`` in the buffer.

    State: ``error``, of the parameter's shape, in float32 for 16-bit parameters; it starts at 0.
    """

    def __call__(
        self,
        gradient: Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
        at: Mapping[str, Tensor],
    ) -> Tensor:
        if "error" not in state:
            state["error"] = torch.zeros_like(gradient, dtype=state_dtype(gradient.dtype))
        error: Tensor = state["error"]
        return error.add_(gradient)
