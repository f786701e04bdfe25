"""DVR's increment: what a worker tells an owner that keeps the estimate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_signvr.estimators.base import PREVIOUS
from lightning_signvr.estimators.momentum import state_dtype


class Increment:
    """``h_t = g_t - (1 - beta) g_t^-``, and ``h_1 = g_1``; no state (arXiv 2609.18656, section 4).

    The finite-sum forms have no ``beta``: there it is 0.
    """

    def __call__(
        self,
        gradient: Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
        at: Mapping[str, Tensor],
    ) -> Tensor:
        if PREVIOUS not in at:
            return gradient
        old_weight = 1 - group.get("beta", 0.0)
        return torch.sub(gradient.to(state_dtype(gradient.dtype)), at[PREVIOUS], alpha=old_weight)
