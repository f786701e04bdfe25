"""Norms of whole gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from typing_extensions import override

from lightning_signvr.metrics.base import ExactMetric

_BLOCK = 64 * 1024  # values whose sum torch's CPU kernel does not round visibly


class GradientNorm(ExactMetric):
    """Mean over the updates of the l1, l2 or l-infinity norm of a whole gradient.

    Ranks differ in their gradients: ``compute()`` returns the mean over them, which is a collective (not
    with ``sync_on_compute=False``).

    Args:
        norm: 1, 2 or ``math.inf``.
        kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: another norm.

    Example:
        >>> gradients = [torch.tensor([3.0, 0.0]), torch.tensor([-4.0])]
        >>> [GradientNorm(norm)(gradients).item() for norm in (1, 2, math.inf)]
        [7.0, 5.0, 4.0]
    """

    plot_lower_bound = 0.0

    def __init__(self, norm: float = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if norm not in (1, 2, math.inf):
            raise ValueError(f"norm must be 1, 2 or math.inf, got {norm!r}")
        self.norm = norm
        # a name of its own: a MetricCollection takes metrics whose states have equal names and values,
        # such as all norms of a zero gradient, for the same metric
        self._sum = f"l{norm:g}_sum"
        self.add_state(self._sum, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("updates", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.updates: Tensor

    @override
    def update(self, gradients: Iterable[Tensor | None]) -> None:
        """Add a gradient.

        Args:
            gradients: its tensors, or the parameters that have it in ``.grad``; None counts as 0. Unscale
                float16 gradients first.

        Raises:
            ValueError: nothing at all, as from a generator that was read before.
        """
        items = list(gradients)
        if not items:
            raise ValueError(
                "gradients is empty: pass the model's parameters, as a list where several metrics read it (a "
                "generator can be read once)"
            )
        total = total_norm((_gradient(item) for item in items), self.norm)
        setattr(self, self._sum, getattr(self, self._sum) + total.to(self.device))
        self.updates += 1

    @override
    def compute(self) -> Tensor:
        """The mean; NaN before the first update."""
        return self.ratio(getattr(self, self._sum), self.updates)


def total_norm(gradients: Iterable[Tensor | None], order: float) -> Tensor:
    """Norm of all tensors together, float64 without dimensions; None counts as 0.

    Example:
        >>> total_norm([torch.tensor([3.0]), None, torch.tensor([[-4.0]])], 2)
        tensor(5., dtype=torch.float64)
    """
    known = [gradient for gradient in gradients if gradient is not None]
    norms = [norm for gradient in known for norm in _norms(gradient, order)]
    if not norms:
        return torch.zeros((), dtype=torch.float64, device=known[0].device if known else None)
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms).double(), order)
    return total


def _norms(gradient: Tensor, order: float) -> list[Tensor]:
    """Numbers with the same norm as a tensor."""
    values = (gradient.coalesce().values() if gradient.is_sparse else gradient).detach().reshape(-1)
    if values.numel() == 0:
        return []
    if order == math.inf:
        return list(torch.aminmax(values))  # a tenth of vector_norm's time
    wide = torch.promote_types(values.dtype, torch.float32)
    block = _BLOCK if values.device.type == "cpu" else values.numel()
    parts = (part.to(wide) for part in torch.split(values, block))
    if order == 1:  # half of vector_norm's time
        sizes = torch.empty(min(block, values.numel()), dtype=wide, device=values.device)
        return [torch.abs(part, out=sizes[: part.numel()]).sum() for part in parts]
    return [torch.linalg.vector_norm(part, order) for part in parts]


def _gradient(item: Tensor | None) -> Tensor | None:
    if item is not None and (isinstance(item, Parameter) or (item.is_leaf and item.requires_grad)):
        item = item.grad
    return None if item is None else item.detach()
