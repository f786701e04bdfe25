"""Noise before the sign: the operation behind all randomized signs of this library."""

from __future__ import annotations

import torch
from torch import Tensor


def dither(direction: Tensor, noise: Tensor, scale: float | Tensor) -> Tensor:
    """``direction + scale * noise``, and 0 where the direction is 0.

    With ``noise`` uniform in [-1, 1) and ``scale = R`` its sign is the stochastic sign ``S_R``: where
    ``|v| <= R``, ``P[+1] = (1 + v / R) / 2``, so that ``E[R S_R(v)] = v`` and, for d coordinates, ``E||R
    S_R(v) - v||^2 = d R^2 - ||v||^2``. Where ``|v| > R`` it is the plain sign of ``v``: clipped, and no
    longer unbiased.

    A direction of exactly 0 stays 0 instead of becoming a coin: as unbiased, without variance, and a
    parameter that nothing depends on does not wander. NaN stays NaN.

    Args:
        direction: floating-point, any shape; not changed.
        noise: as many numbers as ``direction`` has elements, in its logical order; not changed.
        scale: a number, or a tensor that broadcasts to the direction's shape; at least 0.

    Returns:
        Tensor of the direction's shape, in float32 for 16-bit directions: in 16 bits small
        probabilities would be rounded away.

    Example:
        >>> dither(torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, -0.75, 0.75]), 1.0)
        tensor([ 0.7500, -0.2500,  0.0000])
    """
    dtype = torch.promote_types(direction.dtype, torch.float32)
    scaled = noise.view(direction.shape).to(dtype) * scale
    return scaled.add_(direction).masked_fill_(direction == 0, 0)
