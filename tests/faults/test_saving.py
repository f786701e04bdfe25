"""A full disk, a kill while a Trainer saves; what its checkpoints hold, whatever ModelCheckpoint is told."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from lightning import Fabric
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lightning_signvr import Signum
from lightning_signvr.checkpoint_files import load
from lightning_signvr.fabric import SignVoteStrategy as FabricStrategy
from tests.strategies.helpers import (
    LR,
    Regression,
    batches,
    make_trainer,
    parameters_of,
    same_on_all,
    signum_without_coins,
    state_of,
)
from tests.test_killed import Resumable
from tests.workers import WorkerError, run_workers

WORKERS, STEPS, SAVED = 2, 6, 2  # a checkpoint every SAVED steps; the second one fails
OPTIONS: dict[str, dict[str, Any]] = {
    "last": {"save_last": True},
    "link": {"save_last": "link", "save_top_k": -1},
    "best": {"save_last": True, "save_top_k": 2, "monitor": "step_reached", "mode": "max"},
}


class End(NamedTuple):
    parameters: np.ndarray
    state: np.ndarray
    logged: float


class FailsToSave(Callback):
    """From the second checkpoint on rank 0 cannot write, or dies while it does."""

    def __init__(self, how: str) -> None:
        self.how = how

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.global_rank > 0 or trainer.global_step < SAVED:
            return
        if self.how == "no bytes allowed":
            allow_no_more_than(3000)
        if self.how == "full disk":
            fill(Path(trainer.checkpoint_callback.dirpath))
        if self.how == "killed":  # in the middle: the file is there, but it has no name yet
            os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        module.log("step_reached", float(trainer.global_step))


def allow_no_more_than(limit: int) -> None:
    """Of bytes in a file: an error as on a full disk. Python ignores the signal that comes with it."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def fill(folder: Path) -> None:
    with suppress(OSError), open(folder / "ballast", "ab", buffering=0) as file:
        while True:
            file.write(bytes(1024))


def fit(rank: int, folder: str, options: dict[str, Any], how: str = "", resume: str | None = None) -> End:
    checkpoint = ModelCheckpoint(folder, "{step}", every_n_train_steps=SAVED, **options)
    trainer = make_trainer(enable_checkpointing=True, callbacks=[FailsToSave(how), checkpoint])
    module = Regression(seed=9 if resume else rank)
    trainer.fit(module, Resumable(batches(rank, STEPS)), ckpt_path=resume)
    logged = float(trainer.callback_metrics["step_reached"])
    return End(parameters_of(module), state_of(trainer.optimizers[0]), logged)


def resume_and_whole(rank: int, folder: str, options: dict[str, Any]) -> tuple[End, End]:
    resumed = fit(rank, folder, options, resume="last")
    return resumed, fit(rank, f"{folder}/whole", options)


def check_that_the_last_one_resumes(folder: Path, options: dict[str, Any]) -> None:
    assert load(folder / "last.ckpt")["global_step"] == SAVED
    assert not list(folder.glob(f"step={2 * SAVED}*"))
    for rank, (resumed, whole) in enumerate(run_workers(resume_and_whole, WORKERS, str(folder), options)):
        np.testing.assert_array_equal(resumed.parameters, whole.parameters, err_msg=f"rank {rank}")
        np.testing.assert_array_equal(resumed.state, whole.state, err_msg=f"rank {rank}")
        assert resumed.logged == whole.logged == STEPS


# -- a full disk ------------------------------------------------------------------------------------


def test_on_a_full_disk_all_end_and_the_checkpoint_before_resumes(tmp_path: Path) -> None:
    with pytest.raises(WorkerError) as error:
        run_workers(fit, WORKERS, str(tmp_path), OPTIONS["last"], "no bytes allowed")
    first, other = str(error.value).split("rank 1: ")
    assert f"OSError: {tmp_path}/step={2 * SAVED}.ckpt could not be written" in first
    assert "what was there before is untouched" in first
    assert "RuntimeError: saving a checkpoint failed on rank(s) 0" in other
    assert not list(tmp_path.glob(".unfinished-*"))
    check_that_the_last_one_resumes(tmp_path, OPTIONS["last"])


def save_by_fabric(rank: int, folder: str) -> list[str]:
    fabric = Fabric(accelerator="cpu", devices=WORKERS, strategy=FabricStrategy())
    fabric.launch()
    module = Regression()
    state = {"model": module, "optimizer": Signum(module.parameters(), lr=LR)}
    state["model"], state["optimizer"] = fabric.setup(state["model"], state["optimizer"])
    fabric.save(f"{folder}/state", state)
    if rank == 0:
        allow_no_more_than(100)
    errors = []
    for _ in range(2):  # all know, so that they are still together
        try:
            fabric.save(f"{folder}/state", state)
        except (OSError, RuntimeError) as error:
            errors.append(str(error))
    return errors


def test_on_a_full_disk_all_workers_of_fabric_get_an_error(tmp_path: Path) -> None:
    first, other = run_workers(save_by_fabric, WORKERS, str(tmp_path))
    assert [f"{tmp_path}/state could not be written" in message for message in first] == [True, True]
    assert ["saving a checkpoint failed on rank(s) 0" in message for message in other] == [True, True]
    assert "model" in load(tmp_path / "state")


@pytest.mark.slow
def test_a_file_system_that_is_full(tmp_path: Path) -> None:
    """The same with a real one, of one megabyte."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    mounted = subprocess.run(mount, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.decode().strip()}")
    try:
        with pytest.raises(WorkerError) as error:
            run_workers(fit, WORKERS, str(tmp_path), OPTIONS["last"], "full disk")
        assert f"step={2 * SAVED}.ckpt could not be written" in str(error.value)
        assert "rank 1: Traceback" in str(error.value)
        (tmp_path / "ballast").unlink()
        check_that_the_last_one_resumes(tmp_path, OPTIONS["last"])
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# -- kill -9 ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_kill_9_while_a_trainer_saves(name: str, tmp_path: Path) -> None:
    with pytest.raises(WorkerError) as error:
        run_workers(fit, WORKERS, str(tmp_path), OPTIONS[name], "killed")
    assert "rank 0: died without a word" in str(error.value)
    assert "rank 1: Traceback" in str(error.value)
    check_that_the_last_one_resumes(tmp_path, OPTIONS[name])


# -- what files hold --------------------------------------------------------------------------------


def keep_weights(rank: int, folder: str) -> np.ndarray:
    return fit(rank, folder, {"save_weights_only": True, "save_last": True}).parameters


def resume_weights(rank: int, folder: str) -> None:
    fit(rank, folder, {}, resume=f"{folder}/last.ckpt")


def test_weights_alone_load_anywhere_and_do_not_pass_for_a_whole_checkpoint(tmp_path: Path) -> None:
    parameters, _ = run_workers(keep_weights, WORKERS, str(tmp_path))
    path = tmp_path / "last.ckpt"
    plain = Regression(seed=5)
    plain.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    np.testing.assert_array_equal(parameters_of(plain), parameters)
    np.testing.assert_array_equal(parameters_of(Regression.load_from_checkpoint(path, seed=5)), parameters)
    with pytest.raises(WorkerError, match="contains only the model"):
        run_workers(resume_weights, WORKERS, str(tmp_path))


class Precise(NamedTuple):
    dtypes: list[str]
    parameters: np.ndarray
    state: np.ndarray


def in_precision(rank: int, precision: str, folder: str) -> tuple[Precise, Precise]:
    runs = []
    for resume in (None, f"{folder}/saved.ckpt"):
        checkpoint = ModelCheckpoint(folder, "saved", every_n_train_steps=3, save_top_k=-1)
        callbacks = [] if resume else [checkpoint]
        trainer = make_trainer(enable_checkpointing=not resume, callbacks=callbacks, precision=precision)
        module = Regression(signum_without_coins, seed=rank)
        trainer.fit(module, Resumable(batches(rank, 5)), ckpt_path=resume)
        optimizer = trainer.optimizers[0]
        buffers = [state["momentum_buffer"] for state in optimizer.state_dict()["state"].values()]
        dtypes = sorted({str(tensor.dtype) for tensor in (*module.parameters(), *buffers)})
        runs.append(Precise(dtypes, parameters_of(module), state_of(optimizer)))
    return runs[0], runs[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "dtypes"),
    [("bf16-true", ["torch.bfloat16", "torch.float32"]), ("64-true", ["torch.float64"])],
    ids=["bfloat16", "float64"],
)
def test_dtypes_survive(precision: str, dtypes: list[str], tmp_path: Path) -> None:
    ends = run_workers(in_precision, WORKERS, precision, str(tmp_path))
    for whole, resumed in ends:
        assert whole.dtypes == resumed.dtypes == dtypes
        np.testing.assert_array_equal(resumed.parameters, whole.parameters)
        np.testing.assert_array_equal(resumed.state, whole.state)
    assert same_on_all(whole.parameters for whole, _ in ends)
    saved = load(tmp_path / "saved.ckpt")
    states = saved["optimizer_states"][0]["rank_states"]["states"]
    kinds = {str(state["momentum_buffer"].dtype) for own in states for state in own.values()}
    assert kinds | {str(weight.dtype) for weight in saved["state_dict"].values()} == set(dtypes)
