"""A checkpoint holds every worker's optimizer state, and a resumed run goes on as if never stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import AdamW, Optimizer

from lightning_signvr import Signum
from lightning_signvr.checkpoint_files import load
from lightning_signvr.optimizers import SSVR, DVRSign, EFSignum
from lightning_signvr.optimizers.rank_states import resized
from tests.strategies.helpers import (
    LR,
    Regression,
    batches,
    loader,
    make_trainer,
    parameters_of,
    same_on_all,
    signum,
    state_of,
)
from tests.workers import WorkerError, run_workers

WORKERS, EPOCHS, STEPS_PER_EPOCH = 2, 2, 3
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "Signum": signum,  # a vote of two with ties="random": half of the coordinates are decided by coins
    "AdamW": lambda parameters: AdamW(parameters, lr=LR),
    "SSVR": lambda parameters: SSVR(parameters, lr=LR),
    "EFSignum": lambda parameters: EFSignum(parameters, lr=LR),  # with a state at each shard's owner
    "DVRSign": lambda parameters: DVRSign(parameters, lr=LR),
}


class _State(NamedTuple):
    parameters: np.ndarray
    state: np.ndarray
    steps: list[int]


def _fit(rank: int, optimizer: str, folder: str, resume_from: str | None = None) -> _State:
    checkpoint = ModelCheckpoint(folder, filename="{step}", every_n_epochs=1, save_top_k=-1, save_last=True)
    trainer = make_trainer(max_epochs=EPOCHS, enable_checkpointing=True, callbacks=[checkpoint])
    module = Regression(OPTIMIZERS[optimizer], seed=rank)
    trainer.fit(module, loader(batches(rank, STEPS_PER_EPOCH)), ckpt_path=resume_from)
    steps = [vote.step for vote in trainer.strategy.votes]
    return _State(parameters_of(module), state_of(trainer.optimizers[0]), steps)


def _fit_and_resume(rank: int, folder: str) -> dict[str, tuple[_State, _State]]:
    return {
        name: (
            _fit(rank, name, f"{folder}/{name}"),
            _fit(rank, name, f"{folder}/{name}/resumed", f"{folder}/{name}/step={STEPS_PER_EPOCH}.ckpt"),
        )
        for name in OPTIMIZERS
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def runs(folder: Path) -> list[dict[str, tuple[_State, _State]]]:
    return run_workers(_fit_and_resume, WORKERS, str(folder))


@pytest.fixture(scope="module")
def saved(runs: Any, folder: Path) -> dict[str, Any]:
    return torch.load(folder / "Signum" / "last.ckpt", weights_only=True)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_run_equals_the_uninterrupted_one(name: str, runs: list[Any]) -> None:
    for rank, own in enumerate(runs):
        uninterrupted, resumed = own[name]
        np.testing.assert_array_equal(resumed.parameters, uninterrupted.parameters, err_msg=f"rank {rank}")
        np.testing.assert_array_equal(resumed.state, uninterrupted.state, err_msg=f"rank {rank}")
        assert resumed.steps == uninterrupted.steps == [EPOCHS * STEPS_PER_EPOCH]
    assert same_on_all([own[name][0].parameters for own in runs])


def test_each_worker_has_a_state_of_its_own(runs: list[Any]) -> None:
    assert not same_on_all([own["Signum"][0].state for own in runs])


def test_a_checkpoint_holds_each_workers_momentum(runs: list[Any], saved: dict[str, Any]) -> None:
    states = saved["optimizer_states"][0]["rank_states"]["states"]
    for own, state in zip(runs, states, strict=True):
        stored = np.concatenate([s["momentum_buffer"].double().numpy().ravel() for s in state.values()])
        np.testing.assert_array_equal(stored, own["Signum"][0].state)


def test_a_single_process_can_load_a_checkpoint(runs: list[Any], saved: dict[str, Any]) -> None:
    module = Regression(seed=1)
    module.load_state_dict(saved["state_dict"])
    optimizer = Signum(module.parameters(), lr=1.0)
    optimizer.load_state_dict(resized(saved["optimizer_states"][0], 1, "mean"))
    np.testing.assert_array_equal(parameters_of(module), runs[0]["Signum"][0].parameters)
    mean = np.mean([own["Signum"][0].state for own in runs], axis=0)
    np.testing.assert_array_equal(state_of(optimizer), mean.astype(np.float32))
    assert optimizer.param_groups[0]["lr"] == LR


def test_weights_alone_can_be_loaded(runs: list[Any], folder: Path) -> None:
    module = Regression.load_from_checkpoint(folder / "AdamW" / "last.ckpt", seed=1)
    np.testing.assert_array_equal(parameters_of(module), runs[0]["AdamW"][0].parameters)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_checkpoints_are_kept_as_asked(name: str, runs: list[Any], folder: Path) -> None:
    files = sorted(path.name for path in (folder / name).iterdir() if path.is_file())
    assert files == ["last.ckpt", "step=3.ckpt", "step=6.ckpt"]


@pytest.mark.parametrize("workers", [1, 3])
def test_resuming_with_another_number_of_workers_is_refused(
    workers: int, runs: list[Any], folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        WorkerError, match=rf"states of 2 worker\(s\), and this run has {workers}: resume with 2"
    ):
        run_workers(_fit, workers, "Signum", str(tmp_path), str(folder / "Signum" / "last.ckpt"))


def _keep_the_best(rank: int, folder: str) -> tuple[int, bool]:
    checkpoint = ModelCheckpoint(
        folder, monitor="step_reached", mode="max", save_top_k=1, every_n_train_steps=1
    )
    module = Regression()
    trainer = make_trainer(enable_checkpointing=True, callbacks=[_LogStep(), checkpoint])
    trainer.fit(module, loader(batches(rank, STEPS_PER_EPOCH)))
    trainer.save_checkpoint(f"{folder}/weights", weights_only=True)
    return len(list(Path(folder).glob("*.ckpt"))), checkpoint.best_model_path.endswith("step=3.ckpt")


class _LogStep(L.Callback):
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        pl_module.log("step_reached", float(trainer.global_step))


def test_the_best_checkpoint_is_kept(tmp_path: Path) -> None:
    assert run_workers(_keep_the_best, WORKERS, str(tmp_path)) == [(1, True)] * WORKERS
    assert "optimizer_states" not in torch.load(tmp_path / "weights", weights_only=True)


def _keep_two_and_link(rank: int, folder: str) -> None:
    checkpoint = ModelCheckpoint(
        folder, "{step}", "step_reached", mode="max", save_top_k=2, save_last="link", every_n_train_steps=1
    )
    trainer = make_trainer(enable_checkpointing=True, callbacks=[_LogStep(), checkpoint])
    trainer.fit(Regression(), loader(batches(rank, STEPS_PER_EPOCH)))


def test_the_two_best_are_kept_and_the_last_one_is_linked(tmp_path: Path) -> None:
    run_workers(_keep_two_and_link, WORKERS, str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "step=2.ckpt", "step=3.ckpt"]
    assert (tmp_path / "last.ckpt").is_symlink()
    assert load(tmp_path / "last.ckpt")["global_step"] == STEPS_PER_EPOCH
