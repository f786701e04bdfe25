"""SIGTERM and Slurm's signal to requeue: all workers stop after the same step, with a checkpoint of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.optim.optimizer import register_optimizer_step_post_hook

from lightning_signvr import Signum
from lightning_signvr.checkpoint_files import load
from tests.docs.test_snippets import SNIPPET
from tests.strategies.helpers import (
    QUIET,
    Adversarial,
    Regression,
    batches,
    environment,
    loader,
    make_trainer,
    parameters_of,
    same_on_all,
    state_of,
)
from tests.test_killed import Resumable
from tests.workers import WorkerError, run_workers

STEPS = 8
Signals = dict[int, tuple[int, str]]
"""For some ranks: the batch in which a signal comes, and where in it."""


class Raised(Callback):
    """The signal comes at given places, in the main thread, where any signal is handled."""

    def __init__(self, signals: Signals, signum: int = signal.SIGTERM) -> None:
        self.signals, self.signum = signals, signum

    def _here(self, trainer: L.Trainer, place: str) -> None:
        batch = trainer.fit_loop.epoch_loop.batch_idx
        if self.signals.get(trainer.global_rank) == (batch, place) and not trainer.sanity_checking:
            signal.raise_signal(self.signum)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self._here(trainer, "start")

    def on_after_backward(self, trainer: L.Trainer, *args: Any) -> None:
        self._here(trainer, "backward")

    def on_before_optimizer_step(self, trainer: L.Trainer, *args: Any) -> None:
        self._here(trainer, "step")

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._here(trainer, "end")

    def on_validation_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self._here(trainer, "validation")

    def on_save_checkpoint(self, trainer: L.Trainer, *args: Any) -> None:
        self._here(trainer, "save")


class Run(NamedTuple):
    step: int
    parameters: np.ndarray
    state: np.ndarray


def fit(rank: int, callbacks: list[Callback], resume_from: str | None = None, **options: Any) -> Run:
    """Train; a stop by a signal is no error."""
    saves = any(isinstance(callback, Checkpoint) for callback in callbacks)  # else Lightning would, here
    trainer = make_trainer(enable_checkpointing=saves, callbacks=callbacks, **options)
    module = Regression(seed=rank)
    data = Resumable(batches(rank, STEPS))
    # unequal numbers of batches: where workers look at a signal in validation, they part
    validation = loader(batches(rank, 1 + rank)) if "val_check_interval" in options else None
    try:
        trainer.fit(module, data, validation, ckpt_path=resume_from)
    except SIGTERMException:
        assert trainer.interrupted
    return Run(trainer.global_step, parameters_of(module), state_of(trainer.optimizers[0]))


def stop_and_resume(rank: int, folder: str, signals: Signals, options: dict[str, Any]) -> tuple[Run, ...]:
    saved = any(place == "save" for _, place in signals.values())
    often = {"every_n_train_steps": 3 if saved else 100}
    checkpoint = ModelCheckpoint(folder, save_last=True, save_on_exception=True, **often)
    stopped = fit(rank, [Raised(signals), checkpoint], **options)
    return stopped, fit(rank, [], f"{folder}/last.ckpt", **options), fit(rank, [], **options)


def check(results: list[tuple[Run, ...]], folder: Path, latest: int) -> None:
    """All stopped after one step, it was saved, and the resumed run ends as one that was never stopped."""
    steps = {stopped.step for stopped, _, _ in results}
    assert len(steps) == 1
    assert 0 < steps.pop() <= latest
    for rank, (_, resumed, whole) in enumerate(results):
        assert resumed.step == whole.step
        np.testing.assert_array_equal(resumed.parameters, whole.parameters, err_msg=f"rank {rank}")
        np.testing.assert_array_equal(resumed.state, whole.state, err_msg=f"rank {rank}")
    assert same_on_all(stopped.parameters for stopped, _, _ in results)


SOME = {
    "all-at-different-places": (3, {0: (2, "backward"), 1: (3, "end"), 2: (2, "start")}),
}
MORE = {
    "one-in-backward": (2, {1: (2, "backward")}),
    "first-in-backward": (2, {0: (2, "backward")}),
    "first-of-three": (3, {0: (2, "step")}),
    "one-at-the-start": (2, {1: (2, "start")}),
    "one-before-the-step": (3, {2: (2, "step")}),
    "one-at-the-end": (2, {1: (2, "end")}),
    "one-while-all-save": (3, {1: (2, "save")}),
    "all-at-once": (3, dict.fromkeys(range(3), (2, "backward"))),
    "one-a-batch-later": (2, {0: (2, "backward"), 1: (3, "backward")}),
    "in-the-first-batch": (2, {1: (0, "start")}),
}


def stops(workers: int, signals: Signals, folder: Path, **options: Any) -> None:
    results = run_workers(stop_and_resume, workers, str(folder), signals, options)
    check(results, folder, latest=min(batch for batch, _ in signals.values()) + 2)


@pytest.mark.parametrize(("workers", "signals"), SOME.values(), ids=SOME)
def test_all_stop_after_the_same_step(workers: int, signals: Signals, tmp_path: Path) -> None:
    stops(workers, signals, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "signals"), MORE.values(), ids=MORE)
def test_all_stop_after_the_same_step_slow(workers: int, signals: Signals, tmp_path: Path) -> None:
    stops(workers, signals, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3, 7])
def test_a_validation_that_is_due_is_left_out(batch: int, tmp_path: Path) -> None:
    stops(2, {1: (batch, "start")}, tmp_path, val_check_interval=2, num_sanity_val_steps=0)


@pytest.mark.slow
def test_a_signal_in_validation_stops_after_the_next_step(tmp_path: Path) -> None:
    stops(2, {1: (3, "validation")}, tmp_path, val_check_interval=2, num_sanity_val_steps=0)


@pytest.mark.slow
def test_a_step_of_several_batches_is_finished(tmp_path: Path) -> None:
    stops(2, {1: (2, "start")}, tmp_path, accumulate_grad_batches=4)


@pytest.mark.slow
def test_a_lone_worker_stops_too(tmp_path: Path) -> None:
    stops(1, {0: (2, "backward")}, tmp_path)


class Reached(NamedTuple):
    step: int
    files: list[str]


def stop_by_hand(rank: int, folder: str) -> Reached:
    callbacks = [Raised({1: (3, "start")}), OnExceptionCheckpoint(folder)]
    trainer = make_trainer(enable_checkpointing=True, callbacks=callbacks)
    with pytest.raises(SIGTERMException):
        trainer.fit(Adversarial(seed=rank), loader(batches(rank, STEPS)))
    return Reached(trainer.global_step, os.listdir(folder))


@pytest.mark.slow
def test_manual_optimization_with_two_optimizers(tmp_path: Path) -> None:
    steps = 4 + 2  # the second optimizer steps on every other batch
    assert run_workers(stop_by_hand, 2, str(tmp_path)) == [Reached(steps, ["on_exception.ckpt"])] * 2


def stop_in_the_other_namespace(rank: int, folder: str) -> Reached:
    import pytorch_lightning

    class Small(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(4, 1)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            if (rank, batch_idx) == (1, 3):
                signal.raise_signal(signal.SIGTERM)
            return self.net(batch[0]).pow(2).mean()  # type: ignore[no-any-return]

        def configure_optimizers(self) -> Signum:
            return Signum(self.parameters(), lr=0.01)

    saved = pytorch_lightning.callbacks.OnExceptionCheckpoint(folder)
    options = {**QUIET, "enable_checkpointing": True, "callbacks": [saved]}
    trainer = pytorch_lightning.Trainer(strategy="sign_vote", devices=2, **options)
    with pytest.raises(pytorch_lightning.utilities.exceptions.SIGTERMException):
        trainer.fit(Small(), loader(batches(rank, STEPS)))
    return Reached(trainer.global_step, os.listdir(folder))


@pytest.mark.slow
def test_pytorch_lightning(tmp_path: Path) -> None:
    # in training_step it comes after the workers have begun to tell each other: one step more
    ends = run_workers(stop_in_the_other_namespace, 2, str(tmp_path))
    assert ends == [Reached(5, ["on_exception.ckpt"])] * 2


def stop_in_evaluation(rank: int, signals: Signals) -> str:
    class Comes(Callback):
        def on_validation_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
            if (args[2], "validation") == signals.get(rank):
                signal.raise_signal(signal.SIGTERM)

    try:
        make_trainer(callbacks=[Comes()]).validate(Regression(), loader(batches(rank, STEPS)))
    except SIGTERMException:
        return "stopped"
    return "done"


@pytest.mark.slow
def test_an_evaluation_stops_where_each_worker_is() -> None:
    everywhere = {0: (2, "validation"), 1: (4, "validation")}
    assert run_workers(stop_in_evaluation, 2, everywhere) == ["stopped", "stopped"]


def stop_after_the_last_step(rank: int) -> int:
    trainer = make_trainer(callbacks=[Raised({1: (STEPS - 1, "end")})])
    with pytest.raises(SIGTERMException):
        trainer.fit(Regression(seed=rank), loader(batches(rank, STEPS)))
    return trainer.global_step


@pytest.mark.slow
def test_a_signal_after_the_last_step_is_not_lost() -> None:
    assert run_workers(stop_after_the_last_step, 2) == [STEPS, STEPS]


# -- other errors -----------------------------------------------------------------------------------


class Fails(Callback):
    def on_after_backward(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 2:
            raise ArithmeticError("the worker's own reason")


def fail(rank: int, folder: str) -> None:
    try:
        fit(rank, [Fails(), OnExceptionCheckpoint(folder)])
    finally:
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.slow
def test_after_an_error_of_one_worker_saving_is_refused_rather_than_to_wait(tmp_path: Path) -> None:
    with pytest.raises(WorkerError) as error:
        run_workers(fail, 2, str(tmp_path), timeout=30)
    *_, last = str(error.value).strip().splitlines()
    assert last == "ArithmeticError: the worker's own reason"
    assert "did not end" not in str(error.value)
    assert not list(tmp_path.iterdir())


# -- Slurm ------------------------------------------------------------------------------------------

SCONTROL = """#!/bin/sh
echo "$*" >> {calls}
"""


def requeue(rank: int, folder: str, signals: Signals) -> tuple[Run, ...]:
    os.environ.update(SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank), SLURM_NODEID="0", SLURM_JOB_ID="77")
    workers = os.environ["WORLD_SIZE"]
    os.environ.update(SLURM_NTASKS=workers, SLURM_NTASKS_PER_NODE=workers)
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
    options = {"default_root_dir": folder, "plugins": [SLURMEnvironment()]}
    stopped = fit(rank, [Raised(signals, signal.SIGUSR1)], **options)
    return stopped, fit(rank, [], "hpc", **options), fit(rank, [], **options)


def requeues(workers: int, signals: Signals, folder: Path) -> None:
    (folder / "scontrol").write_text(SCONTROL.format(calls=folder / "calls"))
    (folder / "scontrol").chmod(0o755)
    check(run_workers(requeue, workers, str(folder), signals), folder, latest=4)
    assert (folder / "calls").read_text() == "requeue 77\n"
    assert [path.name for path in folder.glob("*.ckpt")] == ["hpc_ckpt_1.ckpt"]


def test_slurms_signal_saves_and_requeues(tmp_path: Path) -> None:
    requeues(2, {1: (2, "backward")}, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "signals",
    [{0: (2, "step")}, {0: (2, "backward"), 1: (3, "start"), 2: (2, "end")}],
    ids=["first", "all-at-different-places"],
)
def test_slurms_signal_saves_and_requeues_slow(signals: Signals, tmp_path: Path) -> None:
    requeues(3, signals, tmp_path)


# -- other loops, as the page on resuming has them --------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "resume.md"


def follow_the_page(rank: int, folder: str, words: list[str], signal_after: int) -> int:
    """Run the page's snippets that have these words; SIGTERM goes to rank 1 after so many steps."""
    os.chdir(folder)
    steps = 0

    def stepped(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if rank == 1 and steps == signal_after:
            signal.raise_signal(signal.SIGTERM)

    register_optimizer_step_post_hook(stepped)
    names: dict[str, Any] = {"torch": torch, "signal": signal, "Signum": Signum}
    for word in words:
        [code] = [code for code in SNIPPET.findall(PAGE.read_text()) if word in code]
        exec(compile(code, "snippet", "exec"), names)
    return int(names["step"])


def test_a_plain_loop_stops_after_the_same_step(tmp_path: Path) -> None:
    words = ['if os.path.exists("checkpoint.pt")', "def all_stop"]
    assert run_workers(follow_the_page, 2, str(tmp_path), words, 23) == [23, 23]
    saved = load(tmp_path / "checkpoint.pt")
    assert saved["step"] == 23
    assert saved["optimizer"]["rank_states"]["world_size"] == 2


@pytest.mark.slow
def test_a_loop_of_accelerate_stops_after_the_same_step(tmp_path: Path) -> None:
    assert run_workers(follow_the_page, 2, str(tmp_path), ["check_trigger"], 5) == [5, 5]
    assert {path.name for path in (tmp_path / "stopped").glob("sign_vote_*")} == {
        "sign_vote_0.bin",
        "sign_vote_1.bin",
    }


# -- whole programs ---------------------------------------------------------------------------------

PROGRAM = Path(__file__).parent / "stop_me.py"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[], TORCHRUN], ids=["Lightning", "torchrun"])
def test_sigterm_to_the_launcher_stops_all_with_a_checkpoint(launcher: list[str], tmp_path: Path) -> None:
    command = [sys.executable, *launcher, str(PROGRAM), str(tmp_path)]
    program = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        while len(list(tmp_path.glob("started-*"))) < 2:
            assert program.poll() is None
            time.sleep(0.05)
        program.terminate()
        output = program.communicate(timeout=20)[0].decode()  # torchrun kills its workers after 30 s
    finally:
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGKILL)
            program.wait()
    assert "got SIGTERM; all workers stop after this step" in output
    assert load(tmp_path / "last.ckpt")["global_step"] >= 3
    assert (program.returncode == 0) == (not launcher), output
