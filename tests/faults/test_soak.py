"""A short run of the soak test, and that it finds what is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.strategies.helpers import environment

ROOT = Path(__file__).parent.parent.parent
SPOILED = {
    "replica": "replicas are equal",
    "restore": "a restarted worker has what the checkpoint holds, or its mean",
    "replay": "a step that is run again gives the same",
    "bytes": "bytes sent are those of the headers and one bit per parameter",
    "votes": "a vote names the workers with NaN or inf, and no other",
    "memory": "a process grows by at most 8 MB in 10,000 steps",
    "fds": "file descriptors do not become more",
    "threads": "threads do not become more",
    "loss": "the loss falls from quarter to quarter",
}


def soak(*options: str) -> tuple[int, dict[str, list[str]], str]:
    """Exit status, the tables by their first column, and the last line."""
    command = [sys.executable, "benchmarks/soak.py", "--steps", "300", "--kill-every", "60", "--lr", "2e-3"]
    command += ["--save-every", "15", "--nan-every", "20", "--warm-up", "20", "--seed", "271"]
    command += options
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env={**environment(), "LIGHTNING_SIGNVR_REGISTER": "0"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    lines = ended.stdout.splitlines()
    assert lines, ended.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return ended.returncode, {name: values for name, *values in rows}, lines[-1]


@pytest.mark.slow
def test_nothing_is_violated() -> None:
    status, rows, last = soak()
    assert status == 0, rows
    assert re.fullmatch(r"0 violations in [\d,]+ checks", last)
    assert rows["steps"] == ["300"]
    assert rows["kills (workers)"] == ["3 (5)"]
    assert rows["of these with another number of workers"] == ["1"]
    invariants = [values for values in rows.values() if len(values) == 2 and values[0][0].isdigit()]
    assert len(invariants) == 16
    assert all(int(checked.replace(",", "")) > 0 for checked, _ in invariants), rows


@pytest.mark.slow
def test_what_is_wrong_is_found() -> None:
    status, rows, last = soak("--method", "Signum", "--spoil", *SPOILED)
    assert status == 1
    assert not last.startswith("0 ")
    found = {spoil for spoil, invariant in SPOILED.items() if rows[invariant][1] != "0"}
    assert found == set(SPOILED)
