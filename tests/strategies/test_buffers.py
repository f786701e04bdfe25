"""Buffers are local while training, and the mean over the workers where they are used or saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from tests.strategies.helpers import (
    Regression,
    batches,
    flat,
    loader,
    make_trainer,
    parameters_of,
    same_on_all,
)
from tests.workers import run_workers

STEPS, SAVED_AT = 6, 4


class _Normalized(Regression):
    def __init__(self, seed: int) -> None:
        super().__init__(
            net=nn.Sequential(
                nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.3), nn.Linear(5, 1)
            ),
            seed=seed,
        )
        for dtype in (torch.float32, torch.float64):
            values = torch.tensor([0.1, -1e-30, float("inf"), float("-inf")], dtype=dtype)
            self.register_buffer(f"constant_{dtype}".replace("torch.", ""), values)
        self.register_buffer("count", torch.tensor(seed))


def _statistics(module: nn.Module) -> np.ndarray:
    norm = module.net[1]  # type: ignore[index]
    return flat([norm.running_mean, norm.running_var])


def _constants(module: nn.Module) -> np.ndarray:
    return flat([module.constant_float32, module.constant_float64])  # type: ignore[list-item]


class _Recorder(L.Callback):
    """Statistics after each training batch, and those that validation sees."""

    def __init__(self) -> None:
        self.local: list[np.ndarray] = []
        self.validated: list[np.ndarray] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.local.append(_statistics(pl_module))

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.validated.append(_statistics(pl_module))


class _Seen(NamedTuple):
    local: list[np.ndarray]
    validated: list[np.ndarray]
    after_fit: np.ndarray
    parameters: np.ndarray
    constants: np.ndarray
    count: int


def _fit(rank: int, folder: str) -> _Seen:
    module, recorder = _Normalized(seed=rank), _Recorder()
    checkpoint = ModelCheckpoint(folder, filename="saved", every_n_train_steps=SAVED_AT)
    trainer = make_trainer(
        callbacks=[recorder, checkpoint],
        enable_checkpointing=True,
        num_sanity_val_steps=0,
        limit_val_batches=1,
    )
    trainer.fit(module, loader(batches(rank, STEPS)), loader(batches(rank, 1)))
    return _Seen(
        recorder.local,
        recorder.validated,
        _statistics(module),
        parameters_of(module),
        _constants(module),
        int(module.count),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def seen(folder: Path) -> list[_Seen]:
    return run_workers(_fit, 3, str(folder))


def test_parameters_stay_equal_with_batch_norm_and_dropout(seen: list[_Seen]) -> None:
    assert same_on_all([own.parameters for own in seen])


def test_statistics_are_averaged_before_validation(seen: list[_Seen]) -> None:
    local = [own.local[-1] for own in seen]
    assert not same_on_all(local)
    assert same_on_all([own.validated[0] for own in seen])
    np.testing.assert_allclose(seen[0].validated[0], np.mean(local, axis=0), rtol=1e-6)


def test_statistics_are_averaged_in_a_checkpoint(seen: list[_Seen], folder: Path) -> None:
    local = [own.local[SAVED_AT - 1] for own in seen]
    assert not same_on_all(local)
    saved = torch.load(folder / "saved.ckpt", weights_only=True)["state_dict"]
    statistics = flat([saved["net.1.running_mean"], saved["net.1.running_var"]])
    np.testing.assert_allclose(statistics, np.mean(local, axis=0), rtol=1e-6)


def test_statistics_are_averaged_after_fit(seen: list[_Seen]) -> None:
    assert same_on_all([own.after_fit for own in seen])
    np.testing.assert_array_equal(seen[0].after_fit, seen[0].validated[0])  # nothing was trained in between


def test_constant_buffers_stay_as_they_are(seen: list[_Seen]) -> None:
    for own in seen:
        np.testing.assert_array_equal(own.constants, _constants(_Normalized(seed=0)))


def test_integer_buffers_start_as_on_rank_0_and_are_not_averaged(seen: list[_Seen]) -> None:
    assert [own.count for own in seen] == [0, 0, 0]
