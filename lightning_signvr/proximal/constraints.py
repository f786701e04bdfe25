"""Sets to stay in: the value is 0 inside and +inf outside, the proximal operator is the projection."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_signvr.proximal.base import Regularizer, working_dtype
from lightning_signvr.proximal.checks import check_number, check_values


def _zero_or_inf(inside: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where all of ``inside`` is true, else +inf."""
    zero = torch.zeros((), dtype=dtype, device=inside.device)
    return torch.where(inside.all(), zero, math.inf)


@dataclass(frozen=True)
class Box(Regularizer):
    """``lower <= x_i <= upper`` for every coordinate; ``prox: clamp``, whatever the step.

    The bounds are those numbers of the dtype of ``x`` that are nearest to ``lower`` and ``upper``: what
    ``prox`` returns lies inside in every dtype. Any shape.

    Args:
        lower: smallest value, -inf for none.
        upper: largest value, at least ``lower``; inf for none.

    Raises:
        TypeError: a bound is not a number.
        ValueError: a bound is NaN, or no finite number lies between them.

    Example:
        >>> Box(-1, 2).prox(torch.tensor([-3.0, 0.5, 3.0]), step=1.0)
        tensor([-1.0000,  0.5000,  2.0000])
        >>> Box(-1, 2).value(torch.tensor([-3.0, 0.5, 3.0]))
        tensor(inf)
    """

    lower: float
    upper: float

    def __post_init__(self) -> None:
        check_number("lower", self.lower)
        check_number("upper", self.upper)
        if not self.lower <= self.upper or self.lower == math.inf or self.upper == -math.inf:
            raise ValueError(
                f"lower must be a number <= upper, got lower={self.lower} and upper={self.upper}: "
                "swap them, or use -inf and inf for an open side"
            )

    def value(self, x: Tensor) -> Tensor:
        # in the dtype of x: in float32, the bfloat16 nearest to a bound may lie outside
        check_values(x)
        lower, upper = torch.tensor([self.lower, self.upper], dtype=torch.float64).to(x)
        return _zero_or_inf((lower <= x) & (x <= upper), working_dtype(x.dtype))

    def _value(self, x: Tensor) -> Tensor:
        return self.value(x)

    def _prox(self, x: Tensor, step: float) -> Tensor:
        return x.clamp(self.lower, self.upper)


@dataclass(frozen=True)
class NonNegative(Regularizer):
    """``x_i >= 0`` for every coordinate; ``prox: max(x_i, 0)``, whatever the step.

    Any shape.

    Example:
        >>> NonNegative().prox(torch.tensor([-3.0, 0.5]), step=1.0)
        tensor([0.0000, 0.5000])
    """

    def _value(self, x: Tensor) -> Tensor:
        return _zero_or_inf(x >= 0, x.dtype)

    def _prox(self, x: Tensor, step: float) -> Tensor:
        return x.clamp(min=0)
