"""A run that was killed and resumed equals the uninterrupted one, on every worker to the last bit."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from lightning_signvr.accelerate import sign_vote
from tests.accelerate.helpers import (
    BATCH,
    OPTIMIZERS,
    WORKERS,
    build,
    data,
    flat,
    loss_of,
    new_accelerator,
)
from tests.workers import WorkerError, run_workers

EPOCHS, STEPS = 3, 4
KILLED_AT = (2, 5)  # epoch and microbatch; the state of epoch 1 is the last one saved
NAMES = ["Signum", "SSVR", "AdamW"]


class _End(NamedTuple):
    parameters: np.ndarray
    buffers: np.ndarray
    state: np.ndarray
    step: int


def _train(rank: int, name: str, folder: str, resume: bool = False, killed: bool = False) -> _End:
    """Dropout masks come from the global generator, whose state is part of a checkpoint."""
    accelerator = new_accelerator()
    sv = sign_vote(accelerator)
    model = build(seed=7 if resume else 0)
    model, optimizer, loader = accelerator.prepare(
        model, OPTIMIZERS[name](model.parameters()), DataLoader(data(STEPS), BATCH)
    )
    torch.manual_seed(rank)
    if resume:
        accelerator.load_state(f"{folder}/1")
    for epoch in range(2 if resume else 0, EPOCHS):
        for number, batch in enumerate(loader):
            if killed and (epoch, number) == KILLED_AT:
                os.kill(os.getpid(), signal.SIGKILL)
            with accelerator.accumulate(model):
                sv.backward(lambda batch=batch: loss_of(model, batch))
                optimizer.step()
                optimizer.zero_grad()
        accelerator.save_state(f"{folder}/{epoch}")
    state = sv.optimizers[0].state_dict()["state"].values()
    tensors = [value for own in state for value in own.values() if isinstance(value, torch.Tensor)]
    return _End(flat(model.parameters()), flat(model.buffers()), flat(tensors), sv.votes[0].step)


def _train_all(rank: int, folder: str, **how: Any) -> dict[str, _End]:
    return {name: _train(rank, name, f"{folder}/{name}", **how) for name in NAMES}


def _train_killed(rank: int, folder: str, name: str) -> None:
    _train(rank, name, f"{folder}/{name}", killed=True)


def _train_resumed(rank: int, folder: str) -> dict[str, _End]:
    return _train_all(rank, folder, resume=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> list[dict[str, _End]]:
    return run_workers(_train_all, WORKERS, str(folder / "uninterrupted"))


@pytest.fixture(scope="module")
def resumed(folder: Path) -> list[dict[str, _End]]:
    for name in NAMES:
        with pytest.raises(WorkerError, match="rank 0: died without a word\nrank 1: died without a word"):
            run_workers(_train_killed, WORKERS, str(folder / "killed"), name)
        assert not (folder / "killed" / name / "2").exists()
    return run_workers(_train_resumed, WORKERS, str(folder / "killed"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_resuming_after_kill_9(name: str, uninterrupted: list[Any], resumed: list[Any]) -> None:
    for rank in range(WORKERS):
        expected, found = uninterrupted[rank][name], resumed[rank][name]
        for field in ("parameters", "buffers", "state"):
            np.testing.assert_array_equal(
                getattr(found, field), getattr(expected, field), err_msg=f"{field} of rank {rank}"
            )
        assert found.step == expected.step == EPOCHS * STEPS
        np.testing.assert_array_equal(found.parameters, resumed[0][name].parameters)


@pytest.mark.parametrize("name", ["Signum", "SSVR"])
def test_the_workers_states_differ_and_are_kept(name: str, uninterrupted: list[Any], folder: Path) -> None:
    first, second = (own[name] for own in uninterrupted)
    assert not np.array_equal(first.state, second.state)
    np.testing.assert_array_equal(first.buffers, second.buffers)  # averaged
    saved = torch.load(folder / "uninterrupted" / name / "2" / "sign_vote_1.bin", weights_only=True)
    state = saved["optimizers"][0]["state"].values()
    tensors = [value for own in state for value in own.values() if isinstance(value, torch.Tensor)]
    np.testing.assert_array_equal(flat(tensors), second.state)


def test_weights_load_without_accelerate(uninterrupted: list[Any], folder: Path) -> None:
    from safetensors.torch import load_model

    model = build(seed=7)
    load_model(model, folder / "uninterrupted" / "Signum" / "2" / "model.safetensors")
    np.testing.assert_array_equal(flat(model.parameters()), uninterrupted[0]["Signum"].parameters)


def _prepare(count: int = 1) -> Accelerator:
    accelerator = new_accelerator()
    sign_vote(accelerator)
    model = build()
    accelerator.prepare(model, *(OPTIMIZERS["Signum"](model.parameters()) for _ in range(count)))
    return accelerator


@pytest.fixture
def checkpoint(uninterrupted: list[Any], folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder / "uninterrupted" / "Signum" / "2", tmp_path / "copy")
    return tmp_path / "copy"


def test_another_number_of_workers_is_refused(checkpoint: Path) -> None:
    with pytest.raises(RuntimeError, match=r"states of 2 worker\(s\), and this run has 1: resume with 2"):
        _prepare().load_state(str(checkpoint))


def test_a_checkpoint_without_votes_is_refused(checkpoint: Path) -> None:
    for path in checkpoint.glob("sign_vote_*.bin"):
        path.unlink()
    with pytest.raises(RuntimeError, match="was not saved under sign_vote"):
        _prepare().load_state(str(checkpoint))


def test_a_newer_format_is_refused(checkpoint: Path) -> None:
    torch.save({"format": 2}, checkpoint / "sign_vote_0.bin")
    with pytest.raises(RuntimeError, match="has format 2, this version reads up to 1: update"):
        _prepare().load_state(str(checkpoint))


def test_another_number_of_optimizers_is_refused(tmp_path: Path) -> None:
    _prepare().save_state(str(tmp_path))
    with pytest.raises(RuntimeError, match=r"states of 1 optimizer\(s\), this run has 2"):
        _prepare(count=2).load_state(str(tmp_path))


def test_a_missing_file_of_one_worker_is_named(checkpoint: Path) -> None:
    (checkpoint / "sign_vote_1.bin").unlink()
    _, message = run_workers(_load_alone, WORKERS, str(checkpoint))
    assert "sign_vote_1.bin is missing: copy the files sign_vote_*.bin of all machines" in message


def _load_alone(rank: int, folder: str) -> str:
    accelerator = _prepare()
    if rank == 0:
        return ""
    with pytest.raises(RuntimeError) as error:
        accelerator.load_state(folder)
    return str(error.value)
