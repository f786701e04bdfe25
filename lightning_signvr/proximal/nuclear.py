"""The sum of the singular values: matrices of low rank."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_signvr.proximal.base import Regularizer
from lightning_signvr.proximal.checks import check_dims, check_strength
from lightning_signvr.proximal.norms import soft_threshold


@dataclass(frozen=True)
class NuclearNorm(Regularizer):
    """``r(x) = strength * sum_i s_i(x)``, ``s_i`` the singular values.

    ``prox: U diag(max(s_i - step * strength, 0)) V^T`` of ``x = U diag(s_i) V^T``. The matrices are the
    last two dimensions, ``[..., rows, columns]``, as in ``torch.linalg``; the others are a batch, over
    which the value is the sum. The weight of a convolution is then a batch of small kernels: for one
    matrix ``[out, in * height * width]``, call it with ``weight.flatten(1)``.

    A matrix with an element that is not finite gives NaN. One singular value decomposition per matrix and
    call, in float32 for 16-bit tensors.

    Args:
        strength: finite, at least 0.

    Raises:
        TypeError: ``strength`` is not a number.
        ValueError: ``strength`` is negative or not finite; in ``value`` and ``prox``: ``x`` has fewer than
            two dimensions.

    Example:
        >>> NuclearNorm(1.0).value(torch.tensor([[3.0, 0.0], [0.0, -4.0]]))
        tensor(7.)
        >>> NuclearNorm(1.0).prox(torch.tensor([[3.0, 0.0], [0.0, -1.0]]), step=1.0).round(decimals=4).abs()
        tensor([[2., 0.],
                [0., 0.]])
    """

    strength: float

    def __post_init__(self) -> None:
        check_strength("strength", self.strength)

    def _finite(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` with 0 for the matrices that are not finite, and which these are, ``[..., 1, 1]``."""
        check_dims(self, x, 2, "[..., rows, columns]")
        broken = ~x.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
        return x.masked_fill(broken, 0.0), broken

    def _value(self, x: Tensor) -> Tensor:
        matrices, broken = self._finite(x)
        total: Tensor = self.strength * torch.linalg.svdvals(matrices).sum()
        return total.masked_fill(broken.any(), math.nan)

    def _prox(self, x: Tensor, step: float) -> Tensor:
        matrices, broken = self._finite(x)
        left, values, right = torch.linalg.svd(matrices, full_matrices=False)
        shrunk = soft_threshold(values, step * self.strength)
        with torch.autocast(x.device.type, enabled=False):  # the product in full precision
            product: Tensor = (left * shrunk.unsqueeze(-2)) @ right
        return product.masked_fill(broken, math.nan)
