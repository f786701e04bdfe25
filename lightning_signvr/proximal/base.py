"""What a regularizer is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from lightning_signvr.proximal.checks import check_values, checked_step


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """16-bit tensors are computed with in float32: sums overflow, and thresholds are rounded away."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


class Regularizer(ABC):
    """A function ``r`` of a tensor, with its proximal operator.

    Subclasses write ``_value(x)`` and ``_prox(x, step)``; both get a checked tensor in float32 or float64
    and a positive float. ``_prox`` returns a tensor of its own, never ``x``.

    Example:
        >>> class Ridge(Regularizer):
        ...     def _value(self, x):
        ...         return x.square().sum() / 2
        ...
        ...     def _prox(self, x, step):
        ...         return x / (1 + step)
        >>> Ridge().prox(torch.tensor([3.0, -1.5]), step=2.0)
        tensor([ 1.0000, -0.5000])
    """

    exact_prox: ClassVar[bool] = True
    """False where only the components have a proximal operator, and ``prox`` raises TypeError."""

    @property
    def components(self) -> tuple[Regularizer, ...]:
        """Simpler terms ``r_1 ... r_K`` whose **mean** is this regularizer: ``r = (1/K) sum_k r_k``.

        Methods that draw components at random, or apply all of them side by side, average their proximal
        operators: ``(1/B) sum_b prox(r_{k_b})``. The average of K steps on ``r_k`` is a step on their mean;
        hence each component is K times as strong as its share of the sum. This is the only place where
        that factor enters: callers neither scale ``step`` nor the result.
        """
        return (self,)

    def value(self, x: Tensor) -> Tensor:
        """``r(x)``, +inf outside of a constraint set.

        Args:
            x: float32, float64, bfloat16 or float16.

        Returns:
            0-dim tensor on the device of ``x``, in its dtype; float32 for 16-bit ``x``. Gradients flow
            through it as torch defines them at kinks, so it can be added to a loss.

        Raises:
            TypeError: ``x`` is not a dense floating-point tensor.
            ValueError: ``x`` has a shape for which this regularizer is not defined.
        """
        check_values(x)
        return self._value(x.to(working_dtype(x.dtype)))

    def prox(self, x: Tensor, step: float | Tensor) -> Tensor:
        """``argmin_u r(u) + ||u - x||^2 / (2 step)``.

        Args:
            x: float32, float64, bfloat16 or float16; not changed. What is NaN stays NaN.
            step: finite and above 0; float or one-element tensor.

        Returns:
            New tensor of the shape, dtype and device of ``x``, without gradient history.

        Raises:
            TypeError: ``x`` is not a dense floating-point tensor, ``step`` is not a number, or there is no
                closed form (see :attr:`exact_prox`).
            ValueError: ``step`` is not finite and positive, or ``x`` has a shape for which this
                regularizer is not defined.
        """
        check_values(x)
        step = checked_step(step)
        with torch.no_grad():
            return self._prox(x.to(working_dtype(x.dtype)), step).to(x.dtype)

    @abstractmethod
    def _value(self, x: Tensor) -> Tensor:
        """:meth:`value` of a checked float32 or float64 tensor."""

    @abstractmethod
    def _prox(self, x: Tensor, step: float) -> Tensor:
        """:meth:`prox` of a checked float32 or float64 tensor."""
