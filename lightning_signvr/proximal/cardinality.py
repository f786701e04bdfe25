"""The number of non-zero coordinates."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lightning_signvr.proximal.base import Regularizer
from lightning_signvr.proximal.checks import check_strength


@dataclass(frozen=True)
class L0(Regularizer):
    """``r(x) = strength *`` number of ``x_i != 0``; ``prox``: 0 where ``|x_i| <= sqrt(2 step strength)``.

    What is above the threshold stays as it is. Not convex: at the threshold itself both 0 and ``x_i`` are
    minimizers, and ``prox`` takes 0. Any shape.

    Args:
        strength: finite, at least 0.

    Raises:
        TypeError: ``strength`` is not a number.
        ValueError: ``strength`` is negative or not finite.

    Example:
        >>> L0(0.5).prox(torch.tensor([3.0, -0.5, -2.0]), step=1.0)
        tensor([ 3.,  0., -2.])
    """

    strength: float

    def __post_init__(self) -> None:
        check_strength("strength", self.strength)

    def _value(self, x: Tensor) -> Tensor:
        return self.strength * (x != 0).sum(dtype=x.dtype)

    def _prox(self, x: Tensor, step: float) -> Tensor:
        return x.masked_fill(x.abs() <= math.sqrt(2 * step * self.strength), 0.0)
