"""STORM whose fresh gradient is SVRG's: the estimator of SSVR-FS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_signvr.estimators.base import PREVIOUS
from lightning_signvr.estimators.svrg import FULL_GRADIENT, variance_reduced


class StormSvrg:
    """``v_t = (1 - beta) v_{t-1} + beta h_t + (1 - beta) (g_t - g_t^-)`` with ``v_1 = F``.

    ``h_t = g_t - g_t^s + F`` is :class:`~lightning_signvr.estimators.Svrg`'s estimate. The three gradients
    are of the same samples, at ``x_t``, ``x_{t-1}`` and the snapshot.

    State: ``estimate`` and ``full_gradient``, in float32 for 16-bit parameters.
    """

    def __call__(
        self,
        gradient: Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
        at: Mapping[str, Tensor],
    ) -> Tensor:
        if "estimate" not in state:
            state["estimate"] = state[FULL_GRADIENT].clone()
            return state["estimate"]  # type: ignore[no-any-return]
        estimate: Tensor = state["estimate"]
        beta = group["beta"]
        if PREVIOUS in at:
            estimate.sub_(at[PREVIOUS]).add_(gradient)
        estimate.mul_(1 - beta)
        return estimate.add_(variance_reduced(gradient, state, at), alpha=beta)
