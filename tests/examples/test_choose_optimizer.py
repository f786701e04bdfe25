"""The comparison of methods, as a user would run it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples.running import run_example


def rows_of(output: str) -> dict[str, list[str]]:
    """Learning rate, loss, accuracy, gradients and bits by method."""
    return {line[:18].strip(): line[18:].split() for line in output.splitlines()[1:]}


@pytest.mark.slow
def test_error_feedback_beats_plain_votes_on_skewed_data() -> None:
    methods = ["SignSGD", "EFLion"]
    output = run_example(
        "choose_optimizer.py",
        *("--workers", "2", "--steps", "60", "--skew", "0.05", "--lr", "1e-2", "--methods", *methods),
    )
    rows = rows_of(output)
    assert list(rows) == methods
    loss = {method: float(row[1]) for method, row in rows.items()}
    assert loss["EFLion"] < 0.5 * loss["SignSGD"]
    assert all(float(row[3]) == 1.0 for row in rows.values())  # gradients per step


def test_every_method_runs_and_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    sizes = ("--workers", "2", "--steps", "2", "--every", "1", "--lr", "1e-2")
    rows = rows_of(run_example("choose_optimizer.py", *sizes, "--plot", str(tmp_path / "picture.png")))
    assert len(rows) == 23
    assert {len(row) for row in rows.values()} == {5}
    assert float(rows["EFSignSGD"][0]) == 0.1  # ten times the rate of the others
    assert float(rows["Lion, mean"][4]) > float(rows["Lion"][4])  # bits
    assert (tmp_path / "picture.png").stat().st_size > 10_000
