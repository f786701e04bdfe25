"""Checks of hyper-parameters; each error names the argument and its value."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor


def check_at_least_zero(name: str, value: Any) -> None:
    """Raise unless ``value`` is a finite number (or one-element tensor) of at least 0."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} as a tensor must have one element, got {value.numel()}")
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be a finite number >= 0, got {value}")


def check_fraction(name: str, value: Any) -> None:
    """Raise unless ``value`` is a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, got {value}")
