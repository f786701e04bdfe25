"""Checks of hyper-parameters; each error names the argument and its value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor


def check_at_least_zero(name: str, value: Any) -> None:
    """Raise unless ``value`` is a finite number (or one-element tensor) of at least 0."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} as a tensor must have one element, got {value.numel()}")
        value = value.item()
    _check_number(name, value)
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be a finite number >= 0, got {value}")


def check_above_zero(name: str, value: Any) -> None:
    """Raise unless ``value`` is a finite number above 0."""
    _check_number(name, value)
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be a finite number > 0, got {value}")


def check_fraction(name: str, value: Any) -> None:
    """Raise unless ``value`` is a number in [0, 1)."""
    _check_number(name, value)
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, got {value}")


def check_betas(value: Any) -> None:
    """Raise unless ``value`` is a pair of numbers in [0, 1)."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"betas must be two numbers, got {value!r}")
    for index, beta in enumerate(value):
        check_fraction(f"betas[{index}]", beta)


def check_weight(name: str, value: Any, zero: bool = True) -> None:
    """Raise unless ``value`` is a number in [0, 1], or in (0, 1] without ``zero``."""
    _check_number(name, value)
    if not 0 <= value <= 1 or (value == 0 and not zero):
        raise ValueError(f"{name} must be {'at least' if zero else 'above'} 0 and at most 1, got {value}")


def check_count(name: str, value: Any) -> None:
    """Raise unless ``value`` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
