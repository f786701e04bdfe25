"""Distributions of the noise that is added before the sign."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

Noise = Literal["gaussian", "uniform"]
NOISES: tuple[str, ...] = get_args(Noise)


def noise_from(uniform: Tensor, distribution: str) -> Tensor:
    """Uniform numbers in (-1, 1) turned into the distribution by its inverse.

    ``"gaussian"`` is the standard normal, up to the 5.4 standard deviations that numbers on a grid of
    ``2**-24`` reach; ``"uniform"`` is what came in.

    Raises:
        ValueError: an unknown distribution.

    Example:
        >>> noise_from(torch.tensor([-0.5, 0.5]), "gaussian")
        tensor([-0.6745,  0.6745])
    """
    if distribution == "uniform":
        return uniform
    if distribution == "gaussian":
        return torch.erfinv(uniform).mul_(math.sqrt(2))
    raise ValueError(f"distribution must be one of {', '.join(map(repr, NOISES))}, got {distribution!r}")
