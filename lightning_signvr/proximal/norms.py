"""l1, squared l2 and their sum: coordinates shrink on their own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_signvr.proximal.base import Regularizer
from lightning_signvr.proximal.checks import check_strength


def soft_threshold(x: Tensor, threshold: float) -> Tensor:
    """``sign(x) * max(|x| - threshold, 0)``."""
    return x - x.clamp(-threshold, threshold)


@dataclass(frozen=True)
class L1(Regularizer):
    """``r(x) = strength * sum |x_i|``; ``prox: sign(x_i) * max(|x_i| - step * strength, 0)``.

    Makes coordinates exactly 0. Any shape.

    Args:
        strength: finite, at least 0.

    Raises:
        TypeError: ``strength`` is not a number.
        ValueError: ``strength`` is negative or not finite.

    Example:
        >>> L1(0.5).prox(torch.tensor([3.0, -0.5, -2.0]), step=2.0)
        tensor([ 2.,  0., -1.])
    """

    strength: float

    def __post_init__(self) -> None:
        check_strength("strength", self.strength)

    def _value(self, x: Tensor) -> Tensor:
        return self.strength * x.abs().sum()

    def _prox(self, x: Tensor, step: float) -> Tensor:
        return soft_threshold(x, step * self.strength)


@dataclass(frozen=True)
class SquaredL2(Regularizer):
    """``r(x) = strength / 2 * sum x_i^2``; ``prox: x_i / (1 + step * strength)``.

    Any shape.

    Args:
        strength: finite, at least 0.

    Raises:
        TypeError: ``strength`` is not a number.
        ValueError: ``strength`` is negative or not finite.

    Example:
        >>> SquaredL2(0.5).prox(torch.tensor([3.0, -1.0]), step=2.0)
        tensor([ 1.5000, -0.5000])
    """

    strength: float

    def __post_init__(self) -> None:
        check_strength("strength", self.strength)

    def _value(self, x: Tensor) -> Tensor:
        return self.strength / 2 * x.square().sum()

    def _prox(self, x: Tensor, step: float) -> Tensor:
        return x / (1 + step * self.strength)


@dataclass(frozen=True)
class ElasticNet(Regularizer):
    """``r(x) = sum l1 * |x_i| + l2 / 2 * x_i^2``.

    ``prox: sign(x_i) * max(|x_i| - step * l1, 0) / (1 + step * l2)``. Any shape.

    Args:
        l1: strength of the absolute values; finite, at least 0.
        l2: strength of half the squares; finite, at least 0.

    Raises:
        TypeError: a strength is not a number.
        ValueError: a strength is negative or not finite.

    Example:
        >>> ElasticNet(l1=0.5, l2=0.5).prox(torch.tensor([3.0, -0.5, -2.0]), step=2.0)
        tensor([ 1.0000,  0.0000, -0.5000])
    """

    l1: float
    l2: float

    def __post_init__(self) -> None:
        check_strength("l1", self.l1)
        check_strength("l2", self.l2)

    def _value(self, x: Tensor) -> Tensor:
        return self.l1 * x.abs().sum() + self.l2 / 2 * x.square().sum()

    def _prox(self, x: Tensor, step: float) -> Tensor:
        return soft_threshold(x, step * self.l1) / (1 + step * self.l2)
