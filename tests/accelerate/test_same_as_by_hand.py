"""A script with Accelerate gives the same parameters as a loop by hand, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.accelerate.helpers import OPTIMIZERS, WORKERS, by_hand, through_accelerate
from tests.workers import run_workers

STEPS = 30
CASES: dict[str, dict[str, Any]] = {
    **{name: {"name": name, "steps": STEPS} for name in OPTIMIZERS},
    "Signum, clipped": {"name": "Signum", "steps": 8, "clip": 0.01},
    "SSVR, clipped": {"name": "SSVR", "steps": 8, "clip": 0.01},
    "SSVR, unclipped": {"name": "SSVR", "steps": 8},
    "SSVR, bf16": {"name": "SSVR", "steps": 8, "precision": "bf16"},
    "SSVR, fp16": {"name": "SSVR", "steps": 8, "precision": "fp16", "clip": 0.01},
    "SSVR, overflow": {"name": "SSVR", "steps": 8, "precision": "fp16", "overflow": 9},
    "Signum, overflow": {"name": "Signum", "steps": 8, "precision": "fp16", "overflow": 9},
    "AdamW, overflow": {"name": "AdamW", "steps": 8, "precision": "fp16", "overflow": 9, "clip": 0.01},
}


def both_ways(rank: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {case: (through_accelerate(rank, **what), by_hand(rank, **what)) for case, what in CASES.items()}


@pytest.fixture(scope="module")
def runs() -> list[Any]:
    return run_workers(both_ways, WORKERS)


@pytest.mark.parametrize("case", CASES)
def test_parameters_are_the_same(case: str, runs: list[Any]) -> None:
    for rank, results in enumerate(runs):
        through, by = results[case]
        np.testing.assert_array_equal(through, by, err_msg=f"rank {rank}")
        np.testing.assert_array_equal(through, runs[0][case][0], err_msg="the workers parted")


def test_the_cases_differ(runs: list[Any]) -> None:
    finals = [results[0].tobytes() for results in runs[0].values()]
    assert len(set(finals)) == len(finals)
