"""Anisotropic total variation of sequences and images: piecewise constant.

The differences of neighbours (0,1), (2,3), ... share no element, nor do those of (1,2), (3,4), ...: each
of these halves has a closed form, pair by pair. So a sequence has two components and an image four, two
along each dimension (the parallel proximal algorithm of Kamilov, IEEE Signal Processing Letters 2017; the
random components of SignProx, Xu and Kamilov, ICASSP 2019). There is no pair across the border.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_signvr.proximal.base import Regularizer
from lightning_signvr.proximal.checks import check_dims, check_int, check_strength
from lightning_signvr.proximal.taut_string import denoise


@dataclass(frozen=True)
class PairVariation(Regularizer):
    """``r(x) = strength * sum |x_{i+1} - x_i|`` over ``i = start, start + 2, ...`` along one dimension.

    ``prox``: both of a pair move towards each other by ``step * strength``, and to their mean if they
    would pass it. An element without a partner stays.

    Args:
        strength: finite, at least 0.
        dim: negative: -1 for the last dimension of ``x``, -2 for the one before.
        start: 0 or 1.

    Raises:
        TypeError: ``strength`` is not a number, ``dim`` or ``start`` not an int.
        ValueError: a value out of its range; in ``value`` and ``prox``: ``x`` has no dimension ``dim``.

    Example:
        >>> PairVariation(1.0, dim=-1, start=0).prox(torch.tensor([0.0, 6.0, 7.0, 8.0, 1.0]), step=1.0)
        tensor([1.0000, 5.0000, 7.5000, 7.5000, 1.0000])
    """

    strength: float
    dim: int
    start: int

    def __post_init__(self) -> None:
        check_strength("strength", self.strength)
        check_int("dim", self.dim)
        check_int("start", self.start)
        if self.dim >= 0:
            raise ValueError(f"dim must be negative, counted from the end, got {self.dim}")
        if self.start not in (0, 1):
            raise ValueError(f"start must be 0 or 1, got {self.start}")

    def _pairs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """First and second elements of the pairs, along the last dimension: views of ``x``."""
        check_dims(self, x, -self.dim, "[..., rows, columns]" if self.dim < -1 else "[..., length]")
        line = x.movedim(self.dim, -1)
        return line[..., self.start : -1 : 2], line[..., self.start + 1 :: 2]

    def _value(self, x: Tensor) -> Tensor:
        first, second = self._pairs(x)
        return self.strength * (second - first).abs().sum()

    def _prox(self, x: Tensor, step: float) -> Tensor:
        result, reach = x.clone(), step * self.strength
        first, second = self._pairs(result)
        half = (second - first) / 2
        mean, meet = (first + second) / 2, half.abs() <= reach
        move = half.clamp(-reach, reach)
        first.copy_(torch.where(meet, mean, first + move))
        second.copy_(torch.where(meet, mean, second - move))
        return result


@dataclass(frozen=True)
class TotalVariation1d(Regularizer):
    """``r(x) = strength * sum |x_{i+1} - x_i|`` along the last dimension.

    Shape ``[..., length]``: what comes before (batch, channels) are sequences of their own, whose values
    are added up. No difference between the last and the first element.

    :attr:`components` are the even and the odd pairs of neighbours, each with twice the strength so that
    their mean is ``r``, vectorized on every device. ``prox`` of the whole is exact and takes time linear
    in the length, but runs in Python on the CPU, one sequence after another, in double precision: some
    seconds per million elements. A sequence with an element that is not finite becomes NaN.

    Args:
        strength: finite, at least 0.

    Raises:
        TypeError: ``strength`` is not a number.
        ValueError: ``strength`` is negative or not finite; in ``value`` and ``prox``: ``x`` has no
            dimension.

    Example:
        >>> TotalVariation1d(1.0).prox(torch.tensor([0.0, 0.0, 6.0, 6.0]), step=2.0)
        tensor([1., 1., 5., 5.])
        >>> for component in TotalVariation1d(1.0).components:
        ...     print(component, component.value(torch.tensor([0.0, 0.0, 6.0, 6.0])))
        PairVariation(strength=2.0, dim=-1, start=0) tensor(0.)
        PairVariation(strength=2.0, dim=-1, start=1) tensor(12.)
    """

    strength: float

    def __post_init__(self) -> None:
        check_strength("strength", self.strength)

    @property
    def components(self) -> tuple[PairVariation, ...]:
        return tuple(PairVariation(2 * self.strength, dim=-1, start=start) for start in (0, 1))

    def _value(self, x: Tensor) -> Tensor:
        check_dims(self, x, 1, "[..., length]")
        return self.strength * x.diff(dim=-1).abs().sum()

    def _prox(self, x: Tensor, step: float) -> Tensor:
        check_dims(self, x, 1, "[..., length]")
        rows = x.reshape(-1, x.shape[-1]).double().tolist() if x.numel() else []
        denoised = torch.tensor([denoise(row, step * self.strength) for row in rows], dtype=torch.float64)
        return denoised.to(x).view(x.shape)


@dataclass(frozen=True)
class TotalVariation2d(Regularizer):
    """``r(x) = strength * (sum |x_{i+1,j} - x_{i,j}| + sum |x_{i,j+1} - x_{i,j}|)`` over the last two dims.

    Shape ``[..., rows, columns]``: what comes before (batch, channels) are images of their own, whose
    values are added up. No differences across the border.

    :attr:`components` are the even and the odd pairs along the rows and along the columns, each with four
    times the strength so that their mean is ``r``. The whole has no closed form: ``prox`` raises
    TypeError, and :attr:`exact_prox` is False. Methods that average the components' proximal operators,
    as SignProx does, do not need it.

    Args:
        strength: finite, at least 0.

    Raises:
        TypeError: ``strength`` is not a number; in ``prox``: always.
        ValueError: ``strength`` is negative or not finite; in ``value``: ``x`` has fewer than two
            dimensions.

    Example:
        >>> regularizer = TotalVariation2d(1.0)
        >>> regularizer.value(torch.tensor([[0.0, 1.0], [5.0, 9.0]]))
        tensor(18.)
        >>> image = torch.tensor([[0.0, 1.0], [5.0, 9.0]])
        >>> sum(component.prox(image, step=0.25) for component in regularizer.components) / 4
        tensor([[0.3750, 1.1250],
                [5.0000, 8.5000]])
    """

    exact_prox: ClassVar[bool] = False

    strength: float

    def __post_init__(self) -> None:
        check_strength("strength", self.strength)

    @property
    def components(self) -> tuple[PairVariation, ...]:
        return tuple(
            PairVariation(4 * self.strength, dim=dim, start=start) for dim in (-2, -1) for start in (0, 1)
        )

    def _value(self, x: Tensor) -> Tensor:
        check_dims(self, x, 2, "[..., rows, columns]")
        return self.strength * (x.diff(dim=-2).abs().sum() + x.diff(dim=-1).abs().sum())

    def _prox(self, x: Tensor, step: float) -> Tensor:
        raise TypeError(
            "TotalVariation2d has no proximal operator in closed form: average those of its components, "
            "sum(each.prox(x, step) for each in r.components) / len(r.components), as SignProx does"
        )
