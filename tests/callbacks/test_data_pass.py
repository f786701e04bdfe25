"""Large first batches and the finite-sum forms of DVR under a real Trainer, beside a plain loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler, TensorDataset

from lightning_signvr import SignSGD
from lightning_signvr.callbacks.first_batch import LargeFirstBatch
from lightning_signvr.callbacks.snapshot import SnapshotGradient
from lightning_signvr.optimizers import SSVR
from lightning_signvr.optimizers.dvrfs import DVRQFS, DVRSignFS
from lightning_signvr.optimizers.dvrsign import DVRSign
from tests.strategies.helpers import Regression, flat, make_trainer, parameters_of, same_on_all
from tests.workers import WorkerError, run_workers

SAMPLES, BATCH, EPOCHS, LR = 44, 4, 2, 0.01
FIRST, SEED = 3, 5  # batches of the first gradient; with two workers a pass has six, the last one smaller
CASES: dict[str, Callable[[Any], Any]] = {
    "SSVR": lambda p: SSVR(p, lr=LR),
    "DVRSign": lambda p: DVRSign(p, lr=LR),
    "DVRSignFS": lambda p: DVRSignFS(p, lr=LR, period=4),
    "DVRQFS": lambda p: DVRQFS(p, lr=LR),  # a snapshot per epoch
}


def dataset() -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(SAMPLES, 4, generator=generator, dtype=torch.float64)
    return TensorDataset(inputs, inputs.sum(1, keepdim=True).sin())


class Counting(Regression):
    """In float64, so that rounding flips no sign; a BatchNorm and a log that count passes."""

    def __init__(self, optimizer: Callable[[Any], Any] = SignSGD) -> None:
        super().__init__(optimizer)
        self.net.double()
        self.norm = nn.BatchNorm1d(4, affine=False, dtype=torch.float64)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.norm(batch[0])
        self.log("count", 1.0, on_step=False, on_epoch=True, reduce_fx="sum")
        return super().training_step(batch, batch_idx)


def callback_for(name: str) -> L.Callback:
    return SnapshotGradient() if name.endswith("FS") else LargeFirstBatch(FIRST, seed=SEED)


def fit(
    rank: int, name: str, data: DataLoader[Any] | None = None, **options: Any
) -> tuple[Counting, L.Trainer]:
    module = Counting(CASES[name])
    callbacks = [callback_for(name), *options.pop("callbacks", [])]
    options = {"use_distributed_sampler": True, "max_epochs": EPOCHS, **options}
    trainer = make_trainer(callbacks=callbacks, **options)
    trainer.fit(module, data or DataLoader(dataset(), batch_size=BATCH))
    return module, trainer


def loop(rank: int, workers: int, name: str) -> np.ndarray:
    """The same steps by hand: whole batches for the large gradients, a closure for the pairs."""
    module, data = Counting(), dataset()
    optimizer = CASES[name](module.parameters())
    sampler = DistributedSampler(data, workers, rank, seed=0)  # Lightning's, which shuffles
    first = list(DistributedSampler(data, workers, rank, seed=SEED))[: FIRST * BATCH]

    def backward(indices: list[int]) -> None:
        optimizer.zero_grad()
        Regression.training_step(module, data[indices], 0).backward()

    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        order = list(sampler)
        for start in range(0, len(order), BATCH):
            if not name.endswith("FS"):
                if epoch == start == 0:
                    with optimizer.large_first_batch():
                        backward(first)
            elif optimizer.snapshot_due or (name == "DVRQFS" and start == 0):
                with optimizer.take_snapshot():
                    backward(sorted(order))
            optimizer.step(lambda batch=order[start : start + BATCH]: backward(batch))
    return parameters_of(module)


def both(rank: int, workers: int) -> dict[str, tuple[np.ndarray, np.ndarray, int, int]]:
    found = {}
    for name in CASES:
        module, trainer = fit(rank, name)
        counts = int(module.norm.num_batches_tracked), int(trainer.callback_metrics["count"])
        found[name] = (parameters_of(module), loop(rank, workers, name), *counts)
    return found


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    return run_workers(both, 2, 2)


@pytest.mark.parametrize("name", CASES)
def test_two_workers_train_as_by_hand(name: str, results: list[dict[str, Any]]) -> None:
    steps = -(-SAMPLES // 2 // BATCH)
    assert same_on_all(own[name][0] for own in results)
    for trained, by_hand, tracked, logged in (own[name] for own in results):
        np.testing.assert_allclose(trained, by_hand, rtol=1e-6, atol=1e-8)
        assert (tracked, logged) == (EPOCHS * steps, steps)  # passes over the data leave no trace


def resume(rank: int, name: str, folder: str) -> bool:
    """From the end of the first epoch, which is in the middle of a period of 4."""
    checkpoint = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    module, _ = fit(rank, name, enable_checkpointing=True, callbacks=[checkpoint])
    twin = Counting(CASES[name])
    trainer = make_trainer(callbacks=[callback_for(name)], use_distributed_sampler=True, max_epochs=EPOCHS)
    trainer.fit(twin, DataLoader(dataset(), batch_size=BATCH), ckpt_path=f"{folder}/epoch=0.ckpt")
    return np.array_equal(parameters_of(module), parameters_of(twin))


def resume_all(rank: int, folder: str) -> list[bool]:
    return [resume(rank, name, f"{folder}/{name}") for name in CASES]


def test_a_resumed_run_is_the_same(tmp_path: Path) -> None:
    assert run_workers(resume_all, 2, str(tmp_path)) == [[True] * len(CASES)] * 2


class Parts(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Whole batches of unequal sizes as the dataset's items."""

    def __init__(self) -> None:
        inputs, targets = dataset().tensors
        self.parts = list(zip(inputs.split([2, 5, 37]), targets.split([2, 5, 37]), strict=True))

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> Any:
        return self.parts[index]


class FirstGradient(L.Callback):
    """Keeps the gradient that the first step was given."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step == 0:
            self.gradient = flat(s["full_gradient"] for s in optimizer.state.values() if "full_gradient" in s)


def given_by(rank: int, kind: str) -> np.ndarray:
    data = dataset()
    if kind == "batches":
        loader: DataLoader[Any] = DataLoader(Parts(), batch_size=None)
    else:
        loader = DataLoader(data, batch_sampler=BatchSampler(SequentialSampler(data), BATCH, drop_last=True))
    keeper = FirstGradient()
    fit(rank, "DVRSignFS", loader, callbacks=[keeper], max_epochs=1, use_distributed_sampler=False)
    return keeper.gradient


@pytest.mark.parametrize("kind", ["batches", "batch_sampler"])
def test_every_sample_counts_the_same(kind: str) -> None:
    module = Counting()
    loss = Regression.training_step(module, dataset()[:], 0)
    expected = flat(torch.autograd.grad(loss, list(module.parameters())))
    [given] = run_workers(given_by, 1, kind)
    np.testing.assert_allclose(given, expected, rtol=1e-9)


def fit_with_nan(rank: int, name: str) -> None:
    data = dataset()
    data.tensors[0][:, 0] = float("nan")
    fit(rank, name, DataLoader(data, batch_size=BATCH))


@pytest.mark.parametrize("name", ["SSVR", "DVRSignFS"])
def test_nan_in_the_data_is_refused_with_the_parameters_name(name: str) -> None:
    with pytest.raises(WorkerError, match=r"mean gradient of net\.0\.weight over the training data is not"):
        run_workers(fit_with_nan, 1, name)


def misuse(rank: int, kind: str) -> None:
    optimizer = SignSGD if kind == "optimizer" else SSVR
    callback = LargeFirstBatch(100 if kind == "batches" else 1)
    trainer = make_trainer("ddp" if kind == "strategy" else "sign_vote", callbacks=[callback])
    trainer.fit(Regression(lambda p: optimizer(p, lr=LR)), DataLoader(dataset(), batch_size=BATCH))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("optimizer", r"SSVR, SSVRMV, DVRSign, DVRQ\), got SignSGD"),
        ("strategy", 'strategy="sign_vote"'),
        ("batches", "batches must be at most 11, .* got 100"),
    ],
)
def test_misuse_is_refused_with_the_remedy(kind: str, message: str) -> None:
    with pytest.raises(WorkerError, match=message):
        run_workers(misuse, 1, kind)


@pytest.mark.parametrize(("batches", "error"), [(0, ValueError), (2.0, TypeError)])
def test_a_bad_number_of_batches_is_named(batches: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="batches must be"):
        LargeFirstBatch(batches)
