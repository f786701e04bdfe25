"""The comparison of methods, as a user would run it."""

from __future__ import annotations

from tests.examples.running import run_example


def test_error_feedback_beats_plain_votes_on_skewed_data() -> None:
    methods = ["SignSGD", "EFLion"]
    output = run_example(
        "choose_optimizer.py",
        *("--workers", "2", "--steps", "60", "--skew", "0.05", "--lr", "1e-2", "--methods", *methods),
    )
    rows = {line[:16].strip(): line[16:].split() for line in output.splitlines()[1:]}
    assert list(rows) == methods
    loss = {method: float(row[1]) for method, row in rows.items()}
    assert loss["EFLion"] < 0.5 * loss["SignSGD"]
    assert all(float(row[3]) == 1.0 for row in rows.values())  # gradients per step
