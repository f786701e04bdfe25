"""Clip the gradients of a step, all of one worker's by one coefficient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_signvr.optimizers.anchored import AnchoredOptimizer


def clip_grad_norm_(
    optimizer: Optimizer, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """As :func:`torch.nn.utils.clip_grad_norm_`, for the gradients at an optimizer's anchors too.

    They are scaled by the coefficient of those in ``.grad``. Each on its own coefficient, their difference
    would no longer be a control variate.

    Args:
        optimizer: whose parameters' gradients are clipped, before its step and after all backward passes.
        max_norm, norm_type, error_if_nonfinite: as torch has them.

    Returns:
        The norm of the gradients in ``.grad`` before clipping.

    Raises:
        RuntimeError: the norm is not finite and ``error_if_nonfinite``.

    Example:
        >>> from lightning_signvr.optimizers import Signum
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> clip_grad_norm_(Signum([weight], lr=0.1), max_norm=1.0)
        tensor(5.)
        >>> weight.grad
        tensor([0.6000, 0.8000])
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    total = torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite)
    if isinstance(optimizer, AnchoredOptimizer):
        scale_at_anchors(optimizer, torch.clamp(max_norm / (total + 1e-6), max=1.0))  # as torch has it
    return total


def scale_at_anchors(optimizer: AnchoredOptimizer, coefficient: Tensor) -> None:
    """Scale the gradients at an optimizer's anchors by the coefficient by which ``.grad`` was scaled."""
    for gradient in optimizer.anchor_gradients():
        gradient.mul_(coefficient.to(gradient.device))


def check_clips_by_value(optimizer: Optimizer) -> None:
    """Refuse clipping by value where gradients at several points are compared.

    Raises:
        ValueError: an optimizer that has anchors to visit in this step.
    """
    if isinstance(optimizer, AnchoredOptimizer) and optimizer.active_anchors():
        raise ValueError(
            f"clipping by value would clip the two gradients of {type(optimizer).__name__} differently, so "
            "that their difference meant nothing: clip by norm (Lightning: "
            'gradient_clip_algorithm="norm"; Fabric: clip_gradients(..., max_norm=...))'
        )
