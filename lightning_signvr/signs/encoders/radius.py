"""Radius of the stochastic sign: the magnitude at which a sign is certain.

==============  =====================================================================================
policy          radius of a tensor ``v``, for a number ``r``
==============  =====================================================================================
``"fixed"``     ``r``: the papers' choice, and the only one that is the same on all workers
``"max"``       ``r * max |v|``: with ``r = 1`` nothing is clipped, and small coordinates are almost coins
``"rms"``       ``r * sqrt(mean v^2)``: clips what is above ``r`` times the typical magnitude
``"running"``   ``r * G``, of each coordinate its own, where ``G = max(G, |v|)`` over all steps so far
                (arXiv 2604.15416): with ``r = 1`` nothing is clipped; one more copy of state
==============  =====================================================================================
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

RadiusPolicy = Literal["fixed", "max", "rms", "running"]
RADIUS_POLICIES: tuple[str, ...] = get_args(RadiusPolicy)


def magnitudes(direction: Tensor) -> Tensor:
    """``|direction|`` as a new tensor, 0 where it is infinite or NaN: one bad number spoils no radius."""
    return direction.nan_to_num(0.0, 0.0, 0.0).abs_()


def radius_of(direction: Tensor, policy: str, number: float, running: Tensor | None = None) -> float | Tensor:
    """The radius for one tensor.

    Args:
        direction: floating-point, not empty.
        policy: one of ``RADIUS_POLICIES``.
        number: ``r`` of the table above.
        running: for ``"running"``, the largest magnitudes so far, of the direction's shape; updated in
            place.

    Returns:
        A number, or a tensor that broadcasts to the direction's shape.

    Raises:
        ValueError: an unknown policy, or no ``running`` where it is needed.

    Example:
        >>> radius_of(torch.tensor([3.0, -4.0]), "max", 1.0)
        tensor(4.)
    """
    if policy == "fixed":
        return number
    sizes = magnitudes(direction)
    if policy == "max":
        return sizes.amax().mul_(number)
    if policy == "rms":
        dtype = torch.promote_types(sizes.dtype, torch.float32)
        norm: Tensor = torch.linalg.vector_norm(sizes, dtype=dtype)
        return norm.mul_(number / math.sqrt(sizes.numel()))
    if policy != "running":
        raise ValueError(f"policy must be one of {', '.join(map(repr, RADIUS_POLICIES))}, got {policy!r}")
    if running is None:
        raise ValueError('running is missing: the policy "running" keeps the largest magnitudes so far')
    return torch.maximum(running, sizes, out=running).mul(number)


def clipped(direction: Tensor, radius: float | Tensor) -> Tensor:
    """Number of coordinates with ``|direction| > radius``, where the sign is not unbiased.

    Returns:
        int64 tensor without dimensions, on the direction's device (so that nothing has to wait for it).

    Example:
        >>> clipped(torch.tensor([1.0, -3.0]), 2.0)
        tensor(1)
    """
    return (direction.abs() > radius).sum()
