"""The gradient, or its average where a group asks for one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_signvr.estimators.momentum import Momentum
from lightning_signvr.estimators.raw import RawGradient


class OptionalMomentum:
    """:class:`RawGradient` in groups with ``momentum = 0`` (no state), :class:`Momentum` in the others."""

    def __init__(self) -> None:
        self._raw, self._average = RawGradient(), Momentum()

    def __call__(
        self,
        gradient: Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
        at: Mapping[str, Tensor],
    ) -> Tensor:
        estimator = self._average if group["momentum"] > 0 else self._raw
        return estimator(gradient, state, group, at)
