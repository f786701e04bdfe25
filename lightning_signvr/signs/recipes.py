"""Directions that are not computed yet, so that a kernel can do it in the pass that packs their signs.

A recipe says what becomes of a worker's state with a new gradient. :meth:`Recipe.compute_` does it with
torch operations, which defines the result; fused kernels equal it bit for bit on the same device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor


@dataclass(frozen=True)
class Recipe(ABC):
    """What becomes of ``state``, which then is the direction.

    Use it up once: before the gradients change, and before anyone looks at the state.

    Attributes:
        state: the estimate so far; updated in place.
        gradient: of this step, of the state's shape.
        keep: factor of the old state.
    """

    state: Tensor
    gradient: Tensor
    keep: float

    @abstractmethod
    def compute_(self) -> Tensor:
        """Update the state and return it."""


@dataclass(frozen=True)
class MovingAverage(Recipe):
    """``keep * state + weight * gradient``.

    Example:
        >>> MovingAverage(torch.tensor([4.0]), torch.tensor([-2.0]), keep=0.75, weight=0.25).compute_()
        tensor([2.5000])
    """

    weight: float

    def compute_(self) -> Tensor:
        return self.state.mul_(self.keep).add_(self.gradient, alpha=self.weight)


@dataclass(frozen=True)
class Recursive(Recipe):
    """``gradient + keep * (state - last)``.

    Attributes:
        last: the gradient that is to be taken out of the state.

    Example:
        >>> old, last, new = torch.tensor([4.0]), torch.tensor([2.0]), torch.tensor([-2.0])
        >>> Recursive(old, new, keep=0.75, last=last).compute_()
        tensor([-0.5000])
    """

    last: Tensor

    def compute_(self) -> Tensor:
        return self.state.sub_(self.last).mul_(self.keep).add_(self.gradient)


@dataclass(frozen=True)
class CorrectedAverage(Recipe):
    """``keep * state + weight * gradient + correction * (gradient - last)``.

    Attributes:
        weight: of the gradient.
        last: the gradient to compare with.
        correction: weight of the difference.
    """

    weight: float
    last: Tensor
    correction: float

    def compute_(self) -> Tensor:
        self.state.mul_(self.keep).add_(self.gradient, alpha=self.weight)
        self.state.add_(self.gradient, alpha=self.correction)
        return self.state.sub_(self.last, alpha=self.correction)


Direction: TypeAlias = Tensor | Recipe
"""What a worker votes with."""


def tensor_of(direction: Direction) -> Tensor:
    """The tensor in which a direction is, or will be."""
    return direction.state if isinstance(direction, Recipe) else direction


def computed(direction: Direction) -> Tensor:
    """The direction as a tensor; a recipe is used up."""
    return direction.compute_() if isinstance(direction, Recipe) else direction
