"""Error feedback on whole steps: the learning rate comes before the compression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_signvr.estimators.momentum import state_dtype


class StepErrorFeedback:
    """``p_t = lr b_t + e_t`` with ``b_t = momentum b_{t-1} + g_t``.

    The optimizer then leaves ``e_{t+1} = p_t - compressed(p_t)`` in the buffer.

    State: ``error`` and, with momentum, ``momentum_buffer`` (``b``), of the parameter's shape, in float32 for
    16-bit parameters; both start at 0.
    """

    def __call__(
        self,
        gradient: Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
        at: Mapping[str, Tensor],
    ) -> Tensor:
        for name in ("error", "momentum_buffer") if group["momentum"] > 0 else ("error",):
            if name not in state:
                state[name] = torch.zeros_like(gradient, dtype=state_dtype(gradient.dtype))
        if group["momentum"] > 0:
            gradient = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        error: Tensor = state["error"]
        return error.add_(gradient, alpha=float(group["lr"]))
