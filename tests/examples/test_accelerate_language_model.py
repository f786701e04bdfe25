"""The language model with Accelerate, launched as a user would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples.running import ROOT

CONFIG = "examples/accelerate_2_processes.yaml"
ACCELERATE = ("accelerate", "launch", "--config_file", CONFIG, "--main_process_port=0")
TORCHRUN = ("torchrun", "--standalone", "--nproc-per-node=2")


def run(launcher: tuple[str, ...], *arguments: str) -> str:
    """What ``launcher examples/accelerate_language_model.py arguments`` prints."""
    command, *options = launcher
    script = "examples/accelerate_language_model.py"
    result = subprocess.run(
        [Path(sys.executable).parent / command, *options, script, "--sample", "20", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def bits_of(output: str) -> list[float]:
    return [float(bits) for bits in re.findall(r"held-out text: (\S+) bits per character", output)]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [ACCELERATE, TORCHRUN], ids=["accelerate", "torchrun"])
def test_two_workers_learn_with_one_bit(launcher: tuple[str, ...]) -> None:
    output = run(launcher, "--steps", "60")
    bits = bits_of(output)
    assert len(bits) == 5  # one process prints
    assert bits[0] > 6
    assert bits[-1] < 4.2
    [sent] = re.findall(r"comm/bits_per_parameter (\S+)", output)
    assert 1 <= float(sent) < 1.1
    assert "The " in output.splitlines()[-1] or "\nThe " in output


@pytest.mark.slow
def test_averaged_gradients_for_comparison(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one bit per parameter and step. " * 400)
    options = ("--optimizer", "adamw", "--no-sign-vote", "--lr", "3e-3", "--steps", "60")
    output = run(TORCHRUN, *options, "--text", str(text))
    assert bits_of(output)[-1] < 2.0
    assert "comm/" not in output
