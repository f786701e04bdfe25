"""Real programs under each launcher: they train, and they end when a worker fails."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Timer
from typing import Any, NamedTuple
from unittest.mock import patch

import lightning as L
import numpy as np
import pytest

from tests.strategies.helpers import LR, QUIET, Regression, batches, environment, loader, parameters_of
from tests.workers import _context

PROGRAM = """
import sys
from pathlib import Path
import lightning as L
import torch
import lightning_signvr

folder, failing_rank = Path(sys.argv[1]), int(sys.argv[2])

class Model(L.LightningModule):
    def __init__(self, fails):
        super().__init__()
        self.net = torch.nn.Linear(3, 2)
        self.fails = fails

    def training_step(self, batch, batch_idx):
        if self.fails and batch_idx == 2 and self.global_rank == failing_rank:
            (folder / "failed").touch()
            raise ValueError(f"rank {self.global_rank} cannot go on")
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return lightning_signvr.Signum(self.parameters(), lr=0.1)

    def on_train_end(self):
        assert self.trainer.world_size == 2
        parameters = [parameter.tolist() for parameter in self.parameters()]
        (folder / f"trained.{self.global_rank}").write_text(repr(parameters))

for fails in (False, True):
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy="sign_vote", max_epochs=1, logger=False,
                        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(Model(fails), torch.utils.data.DataLoader(torch.randn(12, 3)))
"""

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
RUNS = [("default", 0), ("default", 1), ("torchrun", 1)]
"""Launcher, and the rank that fails in the program's second fit."""


class _Ended(NamedTuple):
    folder: Path
    exit_code: int
    errors: str
    seconds_after_failure: float


def _start(launcher: str, arguments: list[str], errors: Connection) -> subprocess.Popen[bytes] | BaseProcess:
    if launcher == "torchrun":
        return subprocess.Popen(
            [*TORCHRUN, *arguments], env=environment(), stderr=errors, start_new_session=True
        )
    process = _context.Process(target=_main, args=(arguments, errors))
    process.start()
    return process


def _main(arguments: list[str], errors: Connection) -> None:
    """``python arguments...``, in a process that has imported the libraries already."""
    os.setsid()
    os.dup2(errors.fileno(), 2)
    errors.close()
    os.environ.update(environment())
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")


def _run(folder: Path, launcher: str, failing_rank: int) -> _Ended:
    program = folder / "program.py"
    program.write_text(PROGRAM)
    reader, errors = _context.Pipe(duplex=False)
    process = _start(launcher, [str(program), str(folder), str(failing_rank)], errors)
    errors.close()
    watchdog = Timer(100, os.killpg, (process.pid, signal.SIGKILL))
    watchdog.start()
    with os.fdopen(os.dup(reader.fileno())) as stream:
        text = stream.read()  # until the last process that writes there has ended
    watchdog.cancel()
    seconds = time.time() - (folder / "failed").stat().st_mtime
    if isinstance(process, subprocess.Popen):
        return _Ended(folder, process.wait(), text, seconds)
    process.join()
    return _Ended(folder, process.exitcode, text, seconds)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], _Ended]:
    """All runs, side by side."""
    with ThreadPoolExecutor(len(RUNS)) as pool:
        running = {run: pool.submit(_run, tmp_path_factory.mktemp("run"), *run) for run in RUNS}
    return {run: job.result() for run, job in running.items()}


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_two_workers_train_to_the_same_parameters(run: tuple[str, int], ended: dict[Any, _Ended]) -> None:
    first, second = ((ended[run].folder / f"trained.{rank}").read_text() for rank in range(2))
    assert first == second


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_a_failing_worker_ends_the_whole_job(run: tuple[str, int], ended: dict[Any, _Ended]) -> None:
    assert ended[run].exit_code != 0
    assert f"ValueError: rank {run[1]} cannot go on" in ended[run].errors
    assert ended[run].seconds_after_failure < 20


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["sign_vote_fork", "sign_vote_spawn"])
def test_fork_and_spawn_hand_the_trained_parameters_back(strategy: str) -> None:
    module = Regression()
    trainer = L.Trainer(**QUIET, devices=2, strategy=strategy)
    with patch.dict(os.environ):  # Lightning leaves its port there
        trainer.fit(module, loader(batches(0, 4)))
    np.testing.assert_allclose(
        np.abs(parameters_of(module) - parameters_of(Regression())).max(), 4 * LR, rtol=1e-5
    )
