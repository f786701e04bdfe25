"""Lion's two averages from one buffer: what is voted on, and what is remembered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_signvr.estimators.momentum import state_dtype


class LionMomentum:
    """``u_t = b1 * m_{t-1} + (1 - b1) * g_t``, then ``m_t = b2 * m_{t-1} + (1 - b2) * g_t``; ``m_0 = 0``.

    The direction ``u_t`` is made of the *old* average and so needs memory of its own, but only until the
    vote. State: ``momentum_buffer`` (``m``), of the parameter's shape, in float32 for 16-bit parameters.
    """

    def __call__(
        self,
        gradient: Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
        at: Mapping[str, Tensor],
    ) -> Tensor:
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient, dtype=state_dtype(gradient.dtype))
        average: Tensor = state["momentum_buffer"]
        now, later = group["betas"]
        direction = average.mul(now).add_(gradient, alpha=1 - now)
        average.mul_(later).add_(gradient, alpha=1 - later)
        return direction
