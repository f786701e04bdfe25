"""The example for Accelerate, launched as a user would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parent.parent.parent
CONFIG = "examples/accelerate_2_processes.yaml"
ACCELERATE = ("accelerate", "launch", "--config_file", CONFIG, "--main_process_port=0")
TORCHRUN = ("torchrun", "--standalone", "--nproc-per-node=2")
LINE = re.compile(
    r"(epoch (\d+) +loss \S+ +test accuracy (\S+)) +(\S+) bits/parameter, (\S+)x less than fp32"
)


def run(launcher: tuple[str, ...], *arguments: str) -> list[re.Match[str]]:
    """The lines about epochs that are printed by ``launcher examples/accelerate_digits.py arguments``."""
    command, *options = launcher
    result = subprocess.run(
        [Path(sys.executable).parent / command, *options, "examples/accelerate_digits.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return [found for line in result.stdout.splitlines() if (found := LINE.match(line))]


@pytest.mark.slow
def test_two_processes_learn_and_resume(tmp_path: Path) -> None:
    epochs = run(ACCELERATE, "--epochs", "4", "--logs", str(tmp_path / "logs"))
    assert [epoch[2] for epoch in epochs] == ["1", "2", "3", "4"]  # one process prints
    assert float(epochs[-1][3]) > 0.93
    assert 1.0 < float(epochs[-1][4]) < 1.1  # two workers
    assert 29 < float(epochs[-1][5]) < 32

    events = EventAccumulator(str(tmp_path / "logs" / "digits"))
    events.Reload()
    keys = {"sign_vote/agreement", "sign_vote/tie_rate", "comm/bytes_sent", "comm/savings_vs_fp32", "loss"}
    assert keys <= set(events.Tags()["scalars"])

    # stopped after two epochs and resumed by another launcher: loss and accuracy as if never stopped
    save = ("--save", str(tmp_path / "checkpoint"))
    first = run(ACCELERATE, "--epochs", "2", *save)
    second = run(TORCHRUN, "--epochs", "4", "--resume", *save)
    assert [epoch[1] for epoch in first + second] == [epoch[1] for epoch in epochs]
