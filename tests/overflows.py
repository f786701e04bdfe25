"""Overflows at random steps on random ranks, and the loss scale that follows from them."""

from __future__ import annotations

import random

STEPS, WORKERS = 500, 3
SCALE, GROWTH_INTERVAL = 16.0, 7  # the scale stays between 1/8 and 128


def overflows() -> list[set[int]]:
    """For each step, the ranks whose gradients overflow."""
    numbers = random.Random(7)
    return [{rank for rank in range(WORKERS) if numbers.random() < 0.03} for _ in range(STEPS)]


def loss_scales() -> list[float]:
    """The loss scale after each step: halved by any overflow, doubled after some steps without one."""
    scales, scale, without = [], SCALE, 0
    for ranks in overflows():
        without = 0 if ranks else without + 1
        if ranks:
            scale /= 2
        elif without == GROWTH_INTERVAL:
            scale, without = 2 * scale, 0
        scales.append(scale)
    return scales
