"""Stochastic variance-reduced gradients: the correction by a snapshot's full gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_signvr.estimators.base import SNAPSHOT, Estimator
from lightning_signvr.estimators.momentum import state_dtype

FULL_GRADIENT = "full_gradient"


class Svrg:
    """``h_t = g_t - g_t^s + F``, where ``s`` is the snapshot and ``F`` the full gradient there.

    ``g_t`` and ``g_t^s`` are the gradients of the same samples at ``x_t`` and at ``s``.

    State: ``full_gradient``, in float32 for 16-bit parameters; written by the optimizer.

    Args:
        then: estimator that ``h_t`` is handed to in place of the gradient; None for none.
    """

    def __init__(self, then: Estimator | None = None) -> None:
        self.then = then

    def __call__(
        self,
        gradient: Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
        at: Mapping[str, Tensor],
    ) -> Tensor:
        reduced = variance_reduced(gradient, state, at)
        return reduced if self.then is None else self.then(reduced, state, group, at)


def variance_reduced(gradient: Tensor, state: dict[str, Any], at: Mapping[str, Tensor]) -> Tensor:
    """``g - g^s + F`` as a new tensor."""
    difference = torch.sub(gradient.to(state_dtype(gradient.dtype)), at[SNAPSHOT])
    return difference.add_(state[FULL_GRADIENT])
