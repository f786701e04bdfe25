"""A published-size fixture: f_i = ||x - a_i||^2 / 2, 1000 exponential samples, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from lightning_signvr.optimizers import SSVR, SSVRFS, SignSGD, SignSVRG, Signum, SnapshotOptimizer

SAMPLES, DIMENSION, STEPS, LR = 1000, 200, 6000, 0.02

# mean |x - mean of the data| at the end, simulated apart from this library; one seed each
EXPECTED: dict[str, tuple[Callable[..., Any], float]] = {
    "SignSGD": (SignSGD, 0.3075),
    "Signum 0.5": (partial(Signum, momentum=0.5), 0.126),
    "Signum 0.9": (partial(Signum, momentum=0.9), 0.031),
    "Signum 0.95": (partial(Signum, momentum=0.95), 0.0286),
    "Signum 0.99": (partial(Signum, momentum=0.99), 0.0354),
    "SSVR 0.5": (partial(SSVR, beta=0.5), 0.127),
    "SSVR 0.1": (partial(SSVR, beta=0.1), 0.032),
    "SSVR 0.05": (partial(SSVR, beta=0.05), 0.0287),
    "SSVR 0.01": (partial(SSVR, beta=0.01), 0.0306),
    "SSVRFS": (partial(SSVRFS, beta=0.1), 0.0),
    "SignSVRG": (SignSVRG, 0.0),
}


def train(make: Callable[..., Any]) -> tuple[float, float]:
    """Mean distances from the mean and from the median of the data."""
    generator = torch.Generator().manual_seed(0)
    data = -torch.rand(SAMPLES, DIMENSION, generator=generator, dtype=torch.float64).log()
    order = torch.randint(SAMPLES, (STEPS,), generator=generator)
    weight = nn.Parameter(torch.zeros(DIMENSION, dtype=torch.float64))
    optimizer = make([weight], lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for step in range(STEPS):
        if isinstance(optimizer, SnapshotOptimizer) and step % SAMPLES == 0:
            with optimizer.take_snapshot():
                weight.grad = weight.detach() - data.mean(0)

        def closure(sample: torch.Tensor = data[order[step]]) -> None:
            weight.grad = weight.detach() - sample

        optimizer.step(closure)
        schedule.step()
    distances = [weight.detach() - centre for centre in (data.mean(0), data.median(0).values)]
    mean, median = (distance.abs().mean().item() for distance in distances)
    return mean, median


@pytest.mark.slow
@pytest.mark.parametrize("method", EXPECTED)
def test_distances_are_those_of_an_independent_simulation(method: str) -> None:
    make, expected = EXPECTED[method]
    to_mean, to_median = train(make)
    assert to_mean == pytest.approx(expected, rel=0.1, abs=1e-4)
    if method == "SignSGD":
        assert to_median == pytest.approx(0.020, abs=0.01)
