"""Groups of coordinates that vanish together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_signvr.proximal.base import Regularizer
from lightning_signvr.proximal.checks import check_int, check_strength


@dataclass(frozen=True)
class GroupL21(Regularizer):
    """``r(x) = strength * sum_g ||x_g||_2``; ``prox: x_g * max(1 - step * strength / ||x_g||_2, 0)``.

    Each index of ``dim`` is one group: ``x_g = x.select(dim, g)`` with all of its elements. For the weight
    of ``torch.nn.Linear`` ``[out, in]``, ``dim=0`` removes output units and ``dim=1`` input features; for
    that of ``torch.nn.Conv2d`` ``[out, in, height, width]``, output and input channels. All groups of a
    tensor have the same size; where tensors of different sizes are to be treated alike, multiply
    ``strength`` by the square root of the group's size.

    Args:
        strength: finite, at least 0.
        dim: dimension whose indices are the groups; negative counts from the end.

    Raises:
        TypeError: ``strength`` is not a number or ``dim`` not an int.
        ValueError: ``strength`` is negative or not finite; in ``value`` and ``prox``: ``x`` has no
            dimension ``dim``.

    Example:
        >>> GroupL21(2.5, dim=0).prox(torch.tensor([[3.0, 4.0], [0.5, 1.5]]), step=1.0)
        tensor([[1.5000, 2.0000],
                [0.0000, 0.0000]])
    """

    strength: float
    dim: int = 0

    def __post_init__(self) -> None:
        check_strength("strength", self.strength)
        check_int("dim", self.dim)

    def _group_norms(self, x: Tensor) -> Tensor:
        """Norm of each group; shape of ``x`` with 1 in all dimensions but ``dim``."""
        if not -x.dim() <= self.dim < x.dim():
            raise ValueError(
                f"dim={self.dim} is out of range for x of shape {tuple(x.shape)}: choose a dimension that "
                "every regularized tensor has, or leave this tensor out"
            )
        # the extra last dimension: without any other, torch would take the norm over all of them
        others = [other for other in range(x.dim() + 1) if other != self.dim % x.dim()]
        norms: Tensor = torch.linalg.vector_norm(x.unsqueeze(-1), dim=others, keepdim=True)
        return norms.squeeze(-1)

    def _value(self, x: Tensor) -> Tensor:
        return self.strength * self._group_norms(x).sum()

    def _prox(self, x: Tensor, step: float) -> Tensor:
        norms, threshold = self._group_norms(x), step * self.strength
        return x * (1 - threshold / norms).masked_fill(norms <= threshold, 0.0)
