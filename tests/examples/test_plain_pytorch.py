"""The program without Lightning, under a real torchrun."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.examples.running import ROOT
from tests.strategies.helpers import environment

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(*arguments: str) -> dict[str, str]:
    """What each worker has at the end."""
    done = subprocess.run(
        [*TORCHRUN, "examples/plain_pytorch.py", *arguments],
        cwd=ROOT,
        env={**environment(), "LIGHTNING_SIGNVR_REGISTER": "0"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    lines: list[tuple[str, str, str]] = re.findall(
        r"^worker (\d): loss (\S+), weights (.*)$", done.stdout, re.M
    )
    assert [worker for worker, _, _ in sorted(lines)] == ["0", "1"], done.stdout
    return {worker: weights for worker, _, weights in lines}


@pytest.mark.slow
def test_two_workers_agree_and_resume(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole.pt", tmp_path / "part.pt"
    weights = run("--checkpoint", str(whole))
    assert weights["0"] == weights["1"]
    run("--checkpoint", str(part), "--steps", "80")
    assert run("--checkpoint", str(part), "--steps", "120", "--resume") == weights

    ends = [torch.load(path) for path in (whole, part)]
    for rank in range(2):
        buffers = [end["optimizer"]["rank_states"]["states"][rank][0]["momentum_buffer"] for end in ends]
        assert torch.equal(*buffers)
    assert torch.equal(*(end["model"]["weight"] for end in ends))
