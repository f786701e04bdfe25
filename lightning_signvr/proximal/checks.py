"""Checks of what regularizers are made with and applied to; each error names the argument and its value."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SUPPORTED_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_SUPPORTED = ", ".join(str(dtype).removeprefix("torch.") for dtype in SUPPORTED_DTYPES)


def check_number(name: str, value: object) -> None:
    """Raise TypeError unless ``value`` is an int or a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}: pass an int or a float")


def check_int(name: str, value: object) -> None:
    """Raise TypeError unless ``value`` is an int."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")


def check_strength(name: str, value: float) -> None:
    """Raise unless ``value`` is a finite number of at least 0."""
    check_number(name, value)
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be a finite number >= 0, got {value}: 0 switches the term off")


def checked_step(step: float | Tensor) -> float:
    """``step`` as a float; raise unless it is finite and positive."""
    if isinstance(step, Tensor):
        if step.numel() != 1:
            raise ValueError(f"step as a tensor must have one element, got shape {tuple(step.shape)}")
        step = step.item()
    check_number("step", step)
    if not math.isfinite(step) or step <= 0:
        raise ValueError(
            f"step must be a finite number > 0, got {step}: where the learning rate is 0, skip the prox"
        )
    return float(step)


def check_values(x: Tensor) -> None:
    """Raise TypeError unless ``x`` is a dense, real floating-point tensor of a supported dtype."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}: convert it with torch.as_tensor")
    if x.layout is not torch.strided:
        raise TypeError(f"x is sparse (layout {x.layout}): pass x.to_dense()")
    if x.dtype not in SUPPORTED_DTYPES:
        dtype = str(x.dtype).removeprefix("torch.")
        raise TypeError(f"x has dtype {dtype}, supported are {_SUPPORTED}: convert it, for example x.float()")


def check_dims(owner: object, x: Tensor, least: int, layout: str) -> None:
    """Raise ValueError where ``x`` has fewer than ``least`` dimensions."""
    if x.dim() < least:
        raise ValueError(
            f"{type(owner).__name__} needs x of shape {layout}, got {x.dim()} dimension(s), "
            f"shape {tuple(x.shape)}: reshape x or leave this tensor out"
        )
