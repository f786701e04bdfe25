"""Clip the gradients that an optimizer compares by one coefficient: else their difference means nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor
from torch.optim import Optimizer

from lightning_signvr.optimizers import AnchoredOptimizer
from lightning_signvr.optimizers.clipping import scale_at_anchors


def clip_anchors(optimizers: Sequence[Optimizer], parameters: Iterable[Tensor], coefficient: Tensor) -> None:
    """Scale the gradients of ``parameters`` at other points.

    Args:
        optimizers: all that may hold such gradients.
        parameters: what was clipped.
        coefficient: by which ``.grad`` was scaled.

    Raises:
        ValueError: only some parameters of an optimizer that compares gradients.
    """
    for optimizer in _comparing(optimizers, parameters):
        scale_at_anchors(optimizer, coefficient)


def refuse_clipping_by_value(optimizers: Sequence[Optimizer], parameters: Iterable[Tensor]) -> None:
    """Raise where an optimizer of ``parameters`` compares gradients.

    Raises:
        ValueError: there is one.
    """
    for optimizer in _comparing(optimizers, parameters):
        raise ValueError(
            f"clip_grad_value_ would clip the two gradients of {type(optimizer).__name__} differently, so "
            "that their difference meant nothing: use accelerator.clip_grad_norm_"
        )


def _comparing(optimizers: Sequence[Optimizer], parameters: Iterable[Tensor]) -> list[AnchoredOptimizer]:
    """The optimizers of ``parameters`` that compare gradients, in this step or later."""
    clipped = {id(parameter) for parameter in parameters}
    found = []
    for optimizer in optimizers:
        if not isinstance(optimizer, AnchoredOptimizer) or not _needs_anchors(optimizer):
            continue
        inside = [
            id(parameter) in clipped
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.requires_grad
        ]
        if any(inside) and not all(inside):
            raise ValueError(
                f"some of the parameters of {type(optimizer).__name__} are clipped and others are not, and "
                "its gradients at two points must be clipped by one coefficient: clip all of them together"
            )
        if any(inside):
            found.append(optimizer)
    return found


def _needs_anchors(optimizer: AnchoredOptimizer) -> bool:
    return any(optimizer.needs(name, group) for name in optimizer.anchors for group in optimizer.param_groups)
