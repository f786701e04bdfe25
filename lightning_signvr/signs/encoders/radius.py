"""Radius of the stochastic sign: the magnitude at which a sign is certain.

==============  =====================================================================================
policy          radius of a tensor ``v``, for a number ``r``
==============  =====================================================================================
``"fixed"``     ``r``, the same on all workers: the papers' choice
``"max"``       ``r * max |v|``: with ``r = 1`` nothing is clipped, and small coordinates are almost coins
``"rms"``       ``r * sqrt(mean v^2)``: clips what is above ``r`` times the typical magnitude
``"running"``   ``r * G``, of each coordinate its own, where ``G = max(G, |v|)`` over all steps so far
                (arXiv 2604.15416): with ``r = 1`` nothing is clipped; one more copy of state
==============  =====================================================================================

With a radius of each worker's own, a vote of one whose gradients are small weighs more than its share. The
``max |v|`` or ``sqrt(mean v^2)`` of all workers can be merged into one, of which no worker decides alone: see
:func:`merged_magnitudes`.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

RadiusPolicy = Literal["fixed", "max", "rms", "running"]
RADIUS_POLICIES: tuple[str, ...] = get_args(RadiusPolicy)
MAGNITUDE_POLICIES: tuple[str, ...] = ("max", "rms")  # a multiple of one number per tensor

OUTLIER = 4.0
"""How many times the workers' median a magnitude may be, to count in full among those of all workers.

Where three honest workers trained on batches of 32, of data split evenly to very unevenly, at most 4 in 100
tensors and steps had a larger one, and to cut it changed no result. Of broken workers less would be better.
"""


def magnitudes(direction: Tensor) -> Tensor:
    """``|direction|`` as a new tensor, 0 where it is infinite or NaN: one bad number spoils no radius."""
    return direction.nan_to_num(0.0, 0.0, 0.0).abs_()


def magnitude_of(direction: Tensor, policy: str) -> Tensor:
    """What ``"max"`` or ``"rms"`` multiply: ``max |v|`` or ``sqrt(mean v^2)`` of a tensor.

    Args:
        direction: floating-point, not empty; what is infinite or NaN counts as 0.
        policy: one of ``MAGNITUDE_POLICIES``.

    Returns:
        Tensor without dimensions, on the direction's device, in float32 for 16-bit directions.

    Example:
        >>> magnitude_of(torch.tensor([3.0, -4.0]), "max")
        tensor(4.)
    """
    sizes, dtype = magnitudes(direction), torch.promote_types(direction.dtype, torch.float32)
    if policy == "max":
        return sizes.amax().to(dtype)
    norm: Tensor = torch.linalg.vector_norm(sizes, dtype=dtype)
    return norm.div_(math.sqrt(sizes.numel()))


def merged_magnitudes(sent: Tensor, policy: str) -> Tensor:
    """The magnitude of each tensor over all workers: the largest, or the root of the mean square.

    Where three or more workers have one, what is above ``OUTLIER`` times their median (of an even number the
    lower middle one) counts as just that. As long as fewer than half of them are broken, the median lies
    between the least and the largest number of the others: so the result is at most ``OUTLIER`` times the
    largest of these, and at least ``sqrt(1 / 2)`` times the least.

    Args:
        sent: ``[workers, tensors]``, what :func:`magnitude_of` gave on each worker; 0 for a worker that has
            no direction, which is left out.
        policy: one of ``MAGNITUDE_POLICIES``.

    Returns:
        float32, ``[tensors]``, 0 where all workers sent 0.

    Example:
        >>> sent = torch.tensor([[3.0, 0.0], [1.0, 2.0]])
        >>> merged_magnitudes(sent, "max"), merged_magnitudes(sent, "rms").square()
        (tensor([3., 2.]), tensor([5., 4.]))
        >>> merged_magnitudes(torch.tensor([[3.0], [1.0], [1e30]]), "max")
        tensor([12.])
    """
    present = (sent > 0).sum(0)
    middle = len(sent) - present + (present - 1) // 2  # in ascending order, behind the zeros
    median = sent.double().sort(0).values.gather(0, middle.unsqueeze(0))
    most = torch.where(present >= 3, OUTLIER * median, math.inf)
    sizes = torch.minimum(sent.double(), most)
    if policy == "max":
        return sizes.amax(0).float()
    mean = sizes.square().sum(0) / present.clamp(min=1)
    return mean.sqrt().float()


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
    if policy in MAGNITUDE_POLICIES:
        return magnitude_of(direction, policy).mul_(number)
    if policy != "running":
        raise ValueError(f"policy must be one of {', '.join(map(repr, RADIUS_POLICIES))}, got {policy!r}")
    if running is None:
        raise ValueError('running is missing: the policy "running" keeps the largest magnitudes so far')
    return torch.maximum(running, magnitudes(direction), out=running).mul(number)


def clipped(direction: Tensor, radius: float | Tensor) -> Tensor:
    """Number of coordinates with ``|direction| > radius``, where the sign is not unbiased.

    Returns:
        int64 tensor without dimensions, on the direction's device (so that nothing has to wait for it).

    Example:
        >>> clipped(torch.tensor([1.0, -3.0]), 2.0)
        tensor(1)
    """
    wide = torch.promote_types(direction.dtype, torch.float32)  # or a float32 radius would be rounded
    return (direction.to(wide).abs() > radius).sum()
