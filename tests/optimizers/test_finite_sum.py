"""SignSVRG, SignRVR, SignRVM and SSVR-FS against their formulas and fixtures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_signvr import MajorityVote, SignSGD
from lightning_signvr.optimizers.signrvr import SignRVM, SignRVR
from lightning_signvr.optimizers.signsvrg import SignSVRG
from lightning_signvr.optimizers.snapshot import SnapshotOptimizer
from lightning_signvr.optimizers.ssvrfs import SSVRFS
from tests.optimizers.problems import SIZE, gradient, loss_of, majority
from tests.workers import run_workers

STEPS, SAMPLES, PERIOD = 50, 4, 8
LR = 1 / 16
METHODS: dict[str, tuple[Callable[..., SnapshotOptimizer], dict[str, Any]]] = {
    "SignSVRG": (SignSVRG, {}),
    "SignRVR": (SignRVR, {}),
    "SignRVM": (SignRVM, {"momentum": 0.5}),
    "SSVRFS": (SSVRFS, {"beta": 0.5}),
}


def reference(method: str, workers: int) -> Tensor:
    """Each worker has SAMPLES functions; step t uses number t mod SAMPLES; factors of 1/2 throughout."""
    point = previous = snapshot = torch.zeros(SIZE, dtype=torch.float64)
    full = [torch.zeros(SIZE)] * workers
    estimates = [torch.zeros(SIZE, dtype=torch.float64)] * workers
    for step in range(STEPS):
        if step % PERIOD == 0:
            snapshot = point
            full = [sum(gradient(point, r, i) for i in range(SAMPLES)) / SAMPLES for r in range(workers)]
        for r in range(workers):
            here, there, before = (gradient(p, r, step % SAMPLES) for p in (point, snapshot, previous))
            reduced = here - there + full[r]
            if method in ("SignSVRG", "SignRVR"):
                estimates[r] = reduced
            elif method == "SignRVM":
                estimates[r] = estimates[r] / 2 + reduced / 2
            else:
                estimates[r] = full[r] if step == 0 else (estimates[r] + reduced + here - before) / 2
        previous, point = point, point - LR * majority(estimates)
    return point


def take_snapshot(optimizer: SnapshotOptimizer, weight: nn.Parameter, rank: int) -> None:
    with optimizer.take_snapshot():
        for sample in range(SAMPLES):
            (loss_of(weight, rank, sample) / SAMPLES).backward()


def train(rank: int, method: str) -> Tensor:
    make, options = METHODS[method]
    weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimizer = make([weight], lr=LR, period=PERIOD, vote=MajorityVote(ties="positive"), **options)
    for step in range(STEPS):
        if optimizer.snapshot_due:
            assert step % PERIOD == 0
            take_snapshot(optimizer, weight, rank)

        def closure(step: int = step) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(weight, rank, step % SAMPLES)
            loss.backward()
            return loss

        optimizer.step(closure)
    return weight.detach()


def train_all(rank: int) -> list[Tensor]:
    return [train(rank, method) for method in METHODS]


@pytest.mark.parametrize("method", METHODS)
def test_one_worker_follows_the_formula_bit_for_bit(method: str) -> None:
    assert torch.equal(train(0, method), reference(method, 1))


def test_three_workers_follow_the_formulas_bit_for_bit() -> None:
    expected = [reference(method, 3) for method in METHODS]
    for replica in run_workers(train_all, 3):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(replica, expected, strict=True))


def final_distance(make: Callable[..., Any], steps: int = 2000) -> tuple[float, float]:
    """Mean distances from the mean and from the median of data, with batches of one sample."""
    data = torch.distributions.Exponential(1.0).sample((101, 20)).double()
    weight = nn.Parameter(torch.zeros(20, dtype=torch.float64))
    optimizer = make([weight], lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.randint(101, (steps,))
    for step in range(steps):
        if isinstance(optimizer, SnapshotOptimizer) and step % 101 == 0:
            with optimizer.take_snapshot():
                weight.grad = weight.detach() - data.mean(0)
        weight.grad = weight.detach() - data[order[step]]
        if isinstance(optimizer, SnapshotOptimizer):
            for name in optimizer.active_anchors():
                with optimizer.at(name):
                    weight.grad = weight.detach() - data[order[step]]
        optimizer.step()
        schedule.step()
    here = weight.detach()
    return (here - data.mean(0)).abs().mean().item(), (here - data.median(0).values).abs().mean().item()


@pytest.mark.parametrize("make", [SignSVRG, SSVRFS])
def test_finite_sum_methods_reach_the_mean(make: Callable[..., Any]) -> None:
    """Fixture: on f_i = ||x - a_i||^2 / 2 signSGD stops at the median; these reach the mean exactly."""
    torch.manual_seed(0)
    assert final_distance(make)[0] < 2e-4
    to_mean, to_median = final_distance(SignSGD)
    assert to_median < 0.1 < to_mean


def test_beta_one_is_signsvrg() -> None:
    weights = []
    for make in (SignSVRG, lambda p, **options: SSVRFS(p, beta=1.0, **options)):
        weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
        optimizer = make([weight], lr=LR, period=PERIOD)
        for step in range(STEPS):
            if optimizer.snapshot_due:
                take_snapshot(optimizer, weight, 0)
            loss_of(weight, 0, step % SAMPLES).backward()
            with optimizer.at("snapshot"):
                loss_of(weight, 0, step % SAMPLES).backward()
            optimizer.step()
            optimizer.zero_grad()
        weights.append(weight.detach())
    assert torch.equal(*weights)


def test_a_snapshot_leaves_gradients_alone_and_survives_a_failure() -> None:
    weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimizer = SignSVRG([weight], lr=LR)
    take_snapshot(optimizer, weight, 0)
    kept = {key: value.clone() for key, value in optimizer.state[weight].items()}
    weight.grad = own = torch.ones_like(weight)

    def fail() -> None:
        with optimizer.take_snapshot():
            loss_of(weight, 0, 1).backward()
            raise KeyError("while reading the data")

    with pytest.raises(KeyError):
        fail()
    assert weight.grad is own
    assert all(torch.equal(value, optimizer.state[weight][key]) for key, value in kept.items())


def test_state_survives_between_snapshots() -> None:
    weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimizer = SSVRFS([weight], lr=LR, period=PERIOD)

    def steps(weight: nn.Parameter, optimizer: SSVRFS, first: int) -> None:
        for step in range(first, first + 5):
            if optimizer.snapshot_due:
                take_snapshot(optimizer, weight, 0)
            optimizer.step(lambda step=step: loss_of(weight, 0, step).backward())
            optimizer.zero_grad()

    steps(weight, optimizer, 0)
    twin = nn.Parameter(weight.detach().clone())
    twin_optimizer = SSVRFS([twin], lr=1.0)
    twin_optimizer.load_state_dict(optimizer.state_dict())
    steps(weight, optimizer, 5)
    steps(twin, twin_optimizer, 5)
    assert torch.equal(weight, twin)


@pytest.mark.parametrize("method", METHODS)
def test_missing_snapshot_and_missing_gradient_are_refused(method: str) -> None:
    make, options = METHODS[method]
    weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimizer = make([weight], lr=LR, period=1, **options)
    weight.grad = torch.ones_like(weight)
    with pytest.raises(RuntimeError, match=r"take_snapshot.*SnapshotGradient"):
        optimizer.step()
    take_snapshot(optimizer, weight, 0)
    with pytest.raises(RuntimeError, match="at 'snapshot' too"):
        optimizer.step()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-3, ValueError), (1.5, TypeError)])
def test_bad_period_is_named(method: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="period"):
        METHODS[method][0]([nn.Parameter(torch.zeros(1))], period=value)


def test_bad_weights_are_named() -> None:
    weight = [nn.Parameter(torch.zeros(1))]
    with pytest.raises(ValueError, match="momentum"):
        SignRVM(weight, momentum=1.0)
    with pytest.raises(ValueError, match="beta"):
        SSVRFS(weight, beta=0.0)
