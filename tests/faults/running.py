"""Start the programs of this folder as a user would, and see how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from lightning_signvr.checkpoint_files import load
from tests.faults import train_lightning, train_plain
from tests.faults.problem import WORKERS, parse
from tests.strategies.helpers import environment
from tests.workers import run_workers

PROGRAMS = {"plain": train_plain, "Lightning": train_lightning}
CHECKPOINTS = {"plain": "checkpoint.pt", "Lightning": "last.ckpt"}
STEP = {"plain": "step", "Lightning": "global_step"}
"""Key in a checkpoint."""

FRESH_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""With torch 2.13's default, restarted workers read addresses of those before them: pytorch issue 135712."""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
ON_ONE_MACHINE = [*TORCHRUN, "--standalone", "--nproc-per-node", str(WORKERS)]


class Start(NamedTuple):
    workers: int
    step: int
    at: float


class Ended(NamedTuple):
    """A program all of whose processes have ended.

    Attributes:
        seconds: since the fault; None where there was none.
    """

    exit_code: int
    output: str
    seconds: float | None


class Program:
    """One that runs.

    Args:
        loop: a name of :data:`PROGRAMS`.
        folder: for all that it leaves behind.
        options: of the program.
        launcher: a command in front of it; by default Lightning's own, for loops torchrun.
    """

    def __init__(self, loop: str, folder: Path, *options: str, launcher: list[str] | None = None) -> None:
        register = "0" if loop == "plain" else "1"  # spares the import of Lightning
        if launcher is None:
            launcher = [sys.executable] if loop == "Lightning" else ON_ONE_MACHINE
        self.folder = folder
        self._process = subprocess.Popen(
            [*launcher, str(PROGRAMS[loop].__file__), str(folder), *options],
            env={**environment(), **FRESH_STORE, "LIGHTNING_SIGNVR_REGISTER": register},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait(self, timeout: float = 90) -> Ended:
        """Until all of its processes have ended; it is an error if some have not in time."""
        try:
            output, _ = self._process.communicate(timeout=timeout)  # until the last one closes its output
        except subprocess.TimeoutExpired:
            self.kill()
            output, _ = self._process.communicate()
            raise AssertionError(f"did not end within {timeout} s; it said:\n{output[-8000:]}") from None
        now, word = time.time(), self.folder / "fault"
        seconds = now - fault_of(self.folder)[0] if word.exists() else None
        return Ended(self._process.returncode, output, seconds)

    def kill(self) -> None:
        """The program, and the workers that torchrun has set apart."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for path in self.folder.glob("pid.*"):
            with suppress(ProcessLookupError):
                os.kill(int(path.suffix[1:]), signal.SIGKILL)


def fault_of(folder: Path) -> tuple[float, int]:
    """When it happened, and on which rank."""
    at, rank = (folder / "fault").read_text().split()
    return float(at), int(rank)


def starts_of(folder: Path) -> list[Start]:
    """Of a program and, where a launcher did that, of its restarts."""
    path = folder / "starts"
    lines = path.read_text().splitlines() if path.exists() else []
    return [Start(int(workers), int(step), float(at)) for workers, step, at in map(str.split, lines)]


def train(rank: int, loop: str, arguments: list[str]) -> None:
    PROGRAMS[loop].train(parse(arguments))


def train_here(loop: str, folder: Path, *options: str, workers: int = WORKERS) -> None:
    """Run a program, or start it again, without a launcher: its workers need not import torch anew."""
    run_workers(train, workers, loop, [str(folder), *options], timeout=60)


def saved_step(loop: str, folder: Path) -> int:
    """How many steps are in the last checkpoint, which must be whole."""
    step: int = load(folder / CHECKPOINTS[loop])[STEP[loop]]
    return step


def check_same_end(folder: Path, other: Path, workers: int = WORKERS) -> None:
    """Parameters and states of all ranks are the same to the last bit in two folders."""
    ends = [[load(place / f"end.{rank}") for rank in range(workers)] for place in (folder, other)]
    for rank in range(workers):
        torch.testing.assert_close(ends[0][rank], ends[1][rank], rtol=0, atol=0)
        torch.testing.assert_close(ends[0][rank]["net"], ends[0][0]["net"], rtol=0, atol=0)
