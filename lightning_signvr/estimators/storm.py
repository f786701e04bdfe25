"""Stochastic recursive momentum (STORM): the variance-reduced estimator of the SSVR family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_signvr.estimators.base import PREVIOUS
from lightning_signvr.estimators.last_gradient import LAST_GRADIENT, remember_gradient
from lightning_signvr.estimators.momentum import state_dtype
from lightning_signvr.signs import CorrectedAverage, MovingAverage, Recipe, Recursive
from lightning_signvr.signs.recipes import computed


def correction_now(group: dict[str, Any]) -> float:
    """A group's ``correction`` in this step: constant, or falling to 0 within ``correction_steps``."""
    correction: float = group["correction"]
    steps = group["correction_steps"]
    return correction if steps is None else correction * max(0.0, 1 - group["step"] / steps)


class Storm:
    """``v_t = (1 - beta) v_{t-1} + beta g_t + correction (1 - beta) (g_t - g_t^-)`` with ``v_1 = g_1``.

    ``g_t`` and ``g_t^-`` are the gradients of the *same samples* at ``x_t`` and at ``x_{t-1}``, so that
    their noise cancels. With ``correction = 1`` this is ``v_t = g_t + (1 - beta) (v_{t-1} - g_t^-)``, arXiv
    2609.18656, equation 10, and is computed in that form; with 0 it is a momentum of ``1 - beta`` that
    begins at the first gradient.

    ``previous="last_batch"`` takes for ``g_t^-`` the gradient that the last step computed, on *other*
    samples. That saves the second evaluation, but the noises no longer cancel: keep ``correction`` small.

    State: ``estimate``, of the parameter's shape, float32 for 16-bit parameters; with ``"last_batch"``
    also ``last_gradient``, a copy.
    """

    def __call__(
        self,
        gradient: Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
        at: Mapping[str, Tensor],
    ) -> Tensor:
        direction = computed(self._direction(gradient, state, group, at))
        if group["previous"] == "last_batch":
            remember_gradient(gradient, state)
        return direction

    def recipe(
        self,
        gradient: Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
        at: Mapping[str, Tensor],
    ) -> Tensor | Recipe:
        """What a call would compute, for a kernel that packs the signs in the same pass.

        Computed already in the first step, and with ``"last_batch"``, where the gradient is to be remembered.
        """
        if group["previous"] == "last_batch":
            return self(gradient, state, group, at)
        return self._direction(gradient, state, group, at)

    @staticmethod
    def _direction(
        gradient: Tensor, state: dict[str, Any], group: dict[str, Any], at: Mapping[str, Tensor]
    ) -> Tensor | Recipe:
        if "estimate" not in state:
            state["estimate"] = gradient.to(state_dtype(gradient.dtype), copy=True)
            return state["estimate"]  # type: ignore[no-any-return]
        last = state.get(LAST_GRADIENT) if group["previous"] == "last_batch" else at.get(PREVIOUS)
        estimate: Tensor = state["estimate"]
        beta, correction = group["beta"], correction_now(group)
        if last is None or correction == 0:
            return MovingAverage(estimate, gradient, 1 - beta, beta)
        if correction == 1:
            return Recursive(estimate, gradient, 1 - beta, last)
        return CorrectedAverage(estimate, gradient, 1 - beta, beta, last, correction * (1 - beta))
