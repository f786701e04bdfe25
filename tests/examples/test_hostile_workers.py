"""Training beside hostile workers: by majority vote and by the mean of the gradients."""

from __future__ import annotations

import argparse
import runpy
from functools import cache
from typing import Any

import pytest

from tests.examples.running import ROOT, run_example
from tests.workers import run_workers


@cache
def example() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "examples" / "hostile_workers.py"))


def final_accuracies(rank: int, runs: list[tuple[str, str, int]], steps: int) -> list[float]:
    options = argparse.Namespace(steps=steps, batch_size=16, lr=1e-2, magnitude=10.0)
    return [example()["train"](rule, attack, liars, 0, options)[-1] for rule, attack, liars in runs]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [3, 5, 7])
def test_a_vote_survives_the_largest_minority_and_a_mean_does_not(workers: int) -> None:
    liars = (workers - 1) // 2
    runs = [("mean", "none", 0), ("mean", "flip", liars)]
    runs += [("vote", attack, liars) for attack in example()["ATTACKS"]]
    everyones = run_workers(final_accuracies, workers, runs, 80, timeout=110)
    assert all(each == everyones[0] for each in everyones)
    mean, mean_beside_liars, *votes = everyones[0]
    assert mean > 0.85
    assert mean_beside_liars < 0.5
    assert min(votes) > 0.75, dict(zip(example()["ATTACKS"], votes, strict=True))


@pytest.mark.slow
def test_the_example_prints_its_table() -> None:
    arguments = ["--workers", "3", "--hostile", "0", "1", "--attacks", "ties", "--steps", "20"]
    header, *lines = run_example("hostile_workers.py", *arguments).splitlines()
    assert header.split() == ["attack", "hostile", "vote", "mean"]
    assert [line.split()[:2] for line in lines] == [["none", "0"], ["ties", "1"]]
    assert all(0 <= float(value) <= 1 for line in lines for value in line.split()[2:])
