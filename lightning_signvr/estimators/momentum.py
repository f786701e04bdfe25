"""Exponential moving average of the gradients: Signum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_signvr.signs import MovingAverage


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Estimators of 16-bit parameters are kept in float32: a slow average would be rounded away."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


class Momentum:
    """``m_t = momentum * m_{t-1} + (1 - momentum) * g_t`` with ``m_0 = 0``, without bias correction.

    A positive factor common to all coordinates does not change a sign, so bias correction would not
    either. State: ``momentum_buffer``, of the parameter's shape, in float32 for 16-bit parameters.
    """

    def __call__(
        self,
        gradient: Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
        at: Mapping[str, Tensor],
    ) -> Tensor:
        return self.recipe(gradient, state, group, at).compute_()

    def recipe(
        self,
        gradient: Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
        at: Mapping[str, Tensor],
    ) -> MovingAverage:
        """What a call would compute, for a kernel that packs the signs in the same pass."""
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient, dtype=state_dtype(gradient.dtype))
        momentum = group["momentum"]
        return MovingAverage(state["momentum_buffer"], gradient, momentum, 1 - momentum)
