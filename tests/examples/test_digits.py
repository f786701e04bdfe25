"""The demonstration, as a user would run it."""

from __future__ import annotations

import re
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.examples.running import run_example

COLUMNS = re.compile(r" {2,}")


def table_of(output: str) -> list[dict[str, str]]:
    lines = output.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("strategy "))
    keys = COLUMNS.split(lines[first].strip())
    rows = [line.strip() for line in lines[first + 2 :]]
    return [dict(zip(keys, COLUMNS.split(row), strict=True)) for row in rows[: rows.index("")]]


def test_two_workers_learn_digits_with_one_bit(tmp_path: Path) -> None:
    steps = 150  # half of what `make demo` takes
    options = ("--steps", str(steps), "--logs", str(tmp_path))
    output = run_example("digits.py", "--strategy", "sign_vote", "ddp", *options)
    vote, ddp = table_of(output)
    assert vote["strategy"] == "sign_vote"
    assert ddp["strategy"] == "ddp"
    assert float(vote["test accuracy"]) > 0.93
    assert float(vote["test accuracy"]) > float(ddp["test accuracy"]) - 0.02
    assert 1.0 <= float(vote["bits/parameter/step"]) < 1.05  # 2 (n - 1) / n = 1, and the headers
    assert f"tensorboard --logdir {tmp_path}" in output

    events = EventAccumulator(str(tmp_path / "digits" / "sign_vote"))
    events.Reload()
    keys = {"loss/train", "grad_norm/local", "sign_vote/agreement", "comm/savings_vs_fp32", "accuracy/test"}
    assert keys <= set(events.Tags()["scalars"])
    losses = events.Scalars("loss/train")
    assert [event.step for event in losses] == list(range(4, steps, 5))
    assert losses[-1].value < 0.2 * losses[0].value
