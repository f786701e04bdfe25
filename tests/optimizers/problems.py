"""A small problem whose gradients are exact in binary, for comparisons to the last bit."""

from __future__ import annotations

import torch
from torch import Tensor

SIZE = 12


def samples(rank: int, step: int) -> tuple[Tensor, Tensor]:
    """Curvatures (0 to 4) and targets of one minibatch, as small binary fractions in float64."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    curvature = torch.randint(0, 5, (SIZE,), generator=generator).double()
    target = torch.randint(-64, 65, (SIZE,), generator=generator).double() / 16
    return curvature, target


def gradient(point: Tensor, rank: int, step: int) -> Tensor:
    """Gradient of ``sum curvature (point - target)^2 / 2``."""
    curvature, target = samples(rank, step)
    return curvature * (point - target)


def loss_of(point: Tensor, rank: int, step: int) -> Tensor:
    curvature, target = samples(rank, step)
    return (curvature * (point - target) ** 2 / 2).sum()


def majority(directions: list[Tensor]) -> Tensor:
    """Sign of the sum of signs; + where it is tied, 0 where nobody has a sign."""
    signs = torch.stack([direction.sign() for direction in directions])
    total = signs.sum(0)
    return torch.where((total == 0) & signs.any(0), 1.0, total.sign()).double()
