"""The full gradient for finite-sum methods, under a real Trainer."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset

from lightning_signvr import SignSGD
from lightning_signvr.callbacks import SnapshotGradient
from lightning_signvr.optimizers import SSVRFS, SignSVRG
from tests.strategies.helpers import LR, Regression, flat, float16, make_trainer, parameters_of, same_on_all
from tests.workers import WorkerError, run_workers

SAMPLES, BATCH = 22, 4  # the last batch is smaller


def dataset() -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(SAMPLES, 4, generator=generator)
    return TensorDataset(inputs, inputs.sum(1, keepdim=True))


class Counting(Regression):
    """Counts passes, has BatchNorm and dropout-free layers, and keeps what a snapshot saw."""

    def __init__(self, optimizer: Any) -> None:
        torch.manual_seed(0)
        super().__init__(optimizer, net=nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)))
        self.norm = nn.BatchNorm1d(4, affine=False)
        self.full_gradients: list[np.ndarray] = []
        self.points: list[np.ndarray] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.norm(batch[0])
        loss = super().training_step(batch, batch_idx)
        self.log("count", 1.0, on_step=False, on_epoch=True, reduce_fx="sum")
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        state = optimizer.state.values()
        self.full_gradients.append(flat(values["full_gradient"] for values in state))
        self.points.append(flat(values["snapshot"] for values in state))


def fit(rank: int, period: int | None, workers_share: bool, **options: Any) -> dict[str, Any]:
    module = Counting(lambda p: SSVRFS(p, lr=LR, beta=0.5, period=period))
    trainer = make_trainer(
        callbacks=[SnapshotGradient()], max_epochs=2, use_distributed_sampler=workers_share, **options
    )
    trainer.fit(module, DataLoader(dataset(), batch_size=BATCH, shuffle=True, num_workers=0))
    steps_per_epoch = trainer.global_step // 2
    return {
        "parameters": parameters_of(module),
        "full": module.full_gradients,
        "points": module.points,
        "tracked": int(module.norm.num_batches_tracked),
        "count": float(trainer.callback_metrics["count"]),
        "steps": steps_per_epoch,
    }


def full_gradient(point: np.ndarray, indices: list[int]) -> np.ndarray:
    """Mean gradient over some samples, in one pass."""
    module = Regression(net=nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)))
    nn.utils.vector_to_parameters(torch.from_numpy(point).float(), module.parameters())
    inputs, targets = dataset()[indices]
    loss = module.training_step((inputs, targets), 0)
    return flat(torch.autograd.grad(loss, list(module.parameters())))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("period", [None, 2])
def test_the_snapshot_has_the_mean_gradient_of_the_workers_share(workers: int, period: int | None) -> None:
    results = run_workers(fit, workers, period, True)
    assert same_on_all(result["parameters"] for result in results)
    for rank, result in enumerate(results):
        share = list(range(SAMPLES))[rank::workers]
        steps = result["steps"]
        assert steps == -(-len(share) // BATCH)
        every = steps if period is None else period
        for step, (full, point) in enumerate(zip(result["full"], result["points"], strict=True)):
            np.testing.assert_allclose(full, full_gradient(point, share), rtol=2e-5, atol=1e-6)
            changed = step == 0 or not np.array_equal(point, result["points"][step - 1])
            assert changed == (step % every == 0), step
        assert result["tracked"] == 2 * steps  # neither snapshots nor anchors are counted
        assert result["count"] == steps


def fit_own_data(rank: int) -> dict[str, Any]:
    return fit(rank, None, False, accumulate_grad_batches=2)


def test_every_worker_may_have_data_of_its_own() -> None:
    [result] = run_workers(fit_own_data, 1)
    assert result["steps"] == 3
    expected = full_gradient(result["points"][0], list(range(SAMPLES)))
    np.testing.assert_allclose(result["full"][0], expected, rtol=2e-5, atol=1e-6)


def fit_float16(rank: int) -> dict[str, Any]:
    return fit(rank, None, True, **float16())


def test_float16_is_unscaled() -> None:
    [result] = run_workers(fit_float16, 1)
    expected = full_gradient(result["points"][0], list(range(SAMPLES)))
    np.testing.assert_allclose(result["full"][0], expected, rtol=0.02, atol=2e-3)


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        return iter(dataset())


def misuse(rank: int, kind: str) -> None:
    optimizer = SignSGD if kind == "optimizer" else SignSVRG
    callbacks: list[L.Callback] = [] if kind == "no callback" else [SnapshotGradient()]
    trainer = make_trainer("ddp" if kind == "strategy" else "sign_vote", callbacks=callbacks)
    data = Stream() if kind == "stream" else dataset()
    sampler = SubsetRandomSampler(range(BATCH)) if kind == "sampler" else None
    loader = DataLoader(data, batch_size=BATCH, sampler=sampler)
    trainer.fit(Regression(lambda p: optimizer(p, lr=LR)), loader)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("optimizer", "got SignSGD"),
        ("strategy", 'strategy="sign_vote"'),
        ("stream", "map-style"),
        ("sampler", "SubsetRandomSampler may leave some out .* torch.utils.data.Subset"),
        ("no callback", r"SnapshotGradient\(\) to the Trainer's callbacks"),
    ],
)
def test_misuse_is_refused_with_the_remedy(kind: str, message: str) -> None:
    with pytest.raises(WorkerError, match=message):
        run_workers(misuse, 1, kind)
