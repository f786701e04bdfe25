"""MARS: an average of corrected gradients, each clipped to the unit ball."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_signvr.estimators.base import PREVIOUS
from lightning_signvr.estimators.last_gradient import LAST_GRADIENT, remember_gradient
from lightning_signvr.estimators.momentum import state_dtype


class Mars:
    """``c_t = g_t + correction * b / (1 - b) * (g_t - g_t^-)``; ``m_t = b m_{t-1} + (1 - b) clip(c_t)``.

    ``b`` is ``momentum``, ``m_0 = 0``, and ``clip(c)`` divides by ``||c||_2`` of the whole tensor where
    that is above 1. In the first step there is no ``g_1^-``, and ``c_1 = g_1``.

    ``previous="exact"`` takes for ``g_t^-`` the gradient of the same samples at ``x_{t-1}``,
    ``"last_batch"`` the gradient that the last step computed, before its correction.

    State: ``momentum_buffer`` (``m``), of the parameter's shape, in float32 for 16-bit parameters; with
    ``"last_batch"`` also ``last_gradient``, a copy in the parameter's dtype.
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
        momentum = group["momentum"]
        last = at.get(PREVIOUS) if group["previous"] == "exact" else state.get(LAST_GRADIENT)
        corrected = _corrected(gradient, last, group["correction"] * momentum / (1 - momentum))
        if group["clip"]:
            norm = torch.linalg.vector_norm(corrected)
            corrected.div_(torch.where(norm > 1, norm, 1.0))  # by 1 where the norm is NaN, too
        if group["previous"] == "last_batch":
            remember_gradient(gradient, state)
        return average.mul_(momentum).add_(corrected, alpha=1 - momentum)


def _corrected(gradient: Tensor, last: Tensor | None, weight: float) -> Tensor:
    """``g + weight * (g - last)`` as a new tensor, in float32 for 16-bit gradients."""
    dtype = state_dtype(gradient.dtype)
    if last is None or weight == 0:
        return gradient.to(dtype, copy=True)
    difference = torch.sub(gradient.to(dtype), last)
    return torch.add(gradient, difference, alpha=weight, out=difference)
