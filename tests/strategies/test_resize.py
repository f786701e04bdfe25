"""Resuming with another number of workers: what each starts with, and the steps that follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_signvr import SignVoteStrategy
from lightning_signvr.fabric import SignVoteStrategy as FabricStrategy
from tests.strategies.helpers import (
    LR,
    MOMENTUM,
    LogLines,
    Regression,
    batches,
    flat,
    loader,
    make_trainer,
    parameters_of,
    same_on_all,
    signum_without_coins,
    state_of,
)
from tests.workers import WorkerError, run_workers

STEPS = 3  # before the resize, and as many after it


class Start(L.Callback):
    """Keeps the optimizer's state as the resumed run begins with it."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        optimizer = trainer.optimizers[0]
        self.state = state_of(optimizer) if optimizer.state else None
        self.step = optimizer.param_groups[0]["step"]


class Resumed(NamedTuple):
    start: np.ndarray | None
    step: int
    parameters: np.ndarray
    lines: list[str]


def save(rank: int, folder: str) -> np.ndarray:
    checkpoint = ModelCheckpoint(folder, filename="saved", every_n_train_steps=STEPS)
    trainer = make_trainer(enable_checkpointing=True, callbacks=[checkpoint])
    trainer.fit(Regression(signum_without_coins), loader(batches(rank, STEPS)))
    return state_of(trainer.optimizers[0])


def resume(rank: int, path: str, on_resize: Any) -> Resumed:
    log, start = LogLines(), Start()
    trainer = make_trainer(SignVoteStrategy(on_resize=on_resize), max_epochs=2, callbacks=[start])
    module = Regression(signum_without_coins, seed=9)
    trainer.fit(module, loader(batches(rank, STEPS)), ckpt_path=path)
    assert trainer.global_step == 2 * STEPS
    lines = [line for line in log.lines if "on_resize" in line]
    return Resumed(start.state, start.step, parameters_of(module), lines)


def resume_in_both_ways(rank: int, path: str) -> tuple[Resumed, Resumed]:
    return resume(rank, path, "mean"), resume(rank, path, "reset")


def directly(weights: dict[str, Tensor], state: np.ndarray, workers: int) -> np.ndarray:
    """The steps after the resize: every worker's momentum begins with the same ``state``."""
    module = Regression()
    module.load_state_dict(weights)
    parameters = list(module.parameters())
    momenta = [torch.tensor(state, dtype=torch.float32) for _ in range(workers)]
    data = [batches(rank, STEPS) for rank in range(workers)]
    for step in range(STEPS):
        signs = 0
        for rank, momentum in enumerate(momenta):
            gradients = torch.autograd.grad(module.training_step(data[rank][step], 0), parameters)
            fresh = torch.cat([gradient.ravel() for gradient in gradients])
            momenta[rank] = MOMENTUM * momentum + (1 - MOMENTUM) * fresh
            signs += torch.where(momenta[rank] < 0, -1, 1)
        moves = torch.where(signs < 0, 1, -1).split([parameter.numel() for parameter in parameters])
        with torch.no_grad():
            for parameter, move in zip(parameters, moves, strict=True):
                parameter += LR * move.view_as(parameter)
    return parameters_of(module)


@pytest.mark.parametrize(
    ("before", "after"),
    [(2, 3), (3, 2), (4, 1), (1, 4)],
)
def test_resize(before: int, after: int, tmp_path: Path) -> None:
    states = run_workers(save, before, str(tmp_path), timeout=120)
    path = tmp_path / "saved.ckpt"
    weights = torch.load(path, weights_only=True)["state_dict"]
    resumed = run_workers(resume_in_both_ways, after, str(path), timeout=120)

    mean = np.mean(states, axis=0).astype(np.float32).astype(np.float64)  # of float64, rounded once
    for number, (way, begin) in enumerate([("mean", mean), ("reset", np.zeros_like(mean))]):
        ends = [both[number] for both in resumed]
        for end in ends:
            assert end.step == STEPS
            np.testing.assert_array_equal(end.start, begin if way == "mean" else None)
        assert same_on_all(end.parameters for end in ends)
        np.testing.assert_allclose(ends[0].parameters, directly(weights, begin, after), atol=1e-6)
        assert [len(end.lines) for end in ends] == [1] + [0] * (after - 1)
        assert f"of {before} worker(s), this run has {after}: each optimizer starts with" in ends[0].lines[0]
    assert not np.array_equal(resumed[0][0].parameters, resumed[0][1].parameters)


def resume_by_default(rank: int, path: str) -> None:
    make_trainer().fit(Regression(signum_without_coins), loader(batches(rank, 1)), ckpt_path=path)


def test_by_default_it_is_an_error(tmp_path: Path) -> None:
    run_workers(save, 1, str(tmp_path))
    with pytest.raises(WorkerError, match=r"states of 1 worker\(s\), and this run has 2: resume with 1"):
        run_workers(resume_by_default, 2, str(tmp_path / "saved.ckpt"))


@pytest.mark.parametrize("strategy", [SignVoteStrategy, FabricStrategy], ids=["Trainer", "Fabric"])
def test_an_unknown_choice_is_refused(strategy: Any) -> None:
    with pytest.raises(ValueError, match=r"on_resize must be .* got 'average'"):
        strategy(on_resize="average")


def fabric_of(rank: int, path: str, resume: bool) -> tuple[np.ndarray, Any]:
    fabric = L.Fabric(
        accelerator="cpu", devices=1 if resume else 2, strategy=FabricStrategy(on_resize="mean")
    )
    fabric.launch()
    module = Regression(seed=9 if resume else 0)
    model, optimizer = fabric.setup(module.net, signum_without_coins(module.net.parameters()))
    if resume:
        fabric.load(path, {"model": model, "optimizer": optimizer})
    else:
        inputs, targets = batches(rank, 1)[0]
        fabric.backward((model(inputs) - targets).pow(2).mean())
        optimizer.step()
        fabric.save(path, {"model": model, "optimizer": optimizer})
    return flat(model.parameters()), state_of(optimizer)


def test_fabric_resizes(tmp_path: Path) -> None:
    path = str(tmp_path / "saved.ckpt")
    (parameters, first), (_, second) = run_workers(fabric_of, 2, path, False)
    [(resumed, state)] = run_workers(fabric_of, 1, path, True)
    np.testing.assert_array_equal(resumed, parameters)
    np.testing.assert_array_equal(state, ((first + second) / 2).astype(np.float32))
