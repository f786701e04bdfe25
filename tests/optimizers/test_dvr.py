"""DVR-Sign, DVR-Q and their finite-sum forms against their formulas; large first batches."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_signvr.optimizers import SSVR, SSVRMV, SignOptimizer
from lightning_signvr.optimizers.dvrfs import DVRQFS, DVRSignFS
from lightning_signvr.optimizers.dvrq import DVRQ
from lightning_signvr.optimizers.dvrsign import DVRSign
from lightning_signvr.optimizers.rank_states import own_rank_state, with_rank_states
from lightning_signvr.signs import random_uniform
from lightning_signvr.voting import ScaledMeanVote
from lightning_signvr.voting.rules import SERVER_STREAM, encoder_stream
from tests.workers import WorkerError, run_workers

STEPS, LR, SEED, SAMPLES, PERIOD, FIRST = 50, 1 / 16, 3, 4, 7, 3
SHAPES = [(5, 7), (3,), (1,), (40,)]
OWNED = {1: [0, 128], 3: [0, 64, 128]}  # where shards begin, in the plane in which SHAPES lie at OFFSETS
OFFSETS = [0, 40, 48, 56]  # each on a byte of its own; with three workers the last tensor is cut
METHODS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "DVRSign": (DVRSign, {"beta": 0.25, "weight_decay": 0.5}),
    "DVRQ": (DVRQ, {"beta": 0.25, "weight_decay": 0.5}),
    "DVRSignFS": (DVRSignFS, {"period": PERIOD}),
    "DVRQFS": (DVRQFS, {"period": PERIOD}),
}
FINITE_SUM = ["DVRSignFS", "DVRQFS"]


@cache
def data(index: int, rank: int, sample: int) -> tuple[Tensor, Tensor]:
    """Curvature (some of it zero) and target of a sample."""
    generator = torch.Generator().manual_seed(7919 * index + 1000 * rank + sample)
    curvature = torch.randint(0, 4, SHAPES[index], generator=generator) / 16
    return curvature, torch.randn(SHAPES[index], generator=generator)


def gradient(point: Tensor, index: int, rank: int, step: int) -> Tensor:
    """Of one sample's quadratic."""
    curvature, target = data(index, rank, step % SAMPLES)
    return curvature * (point - target)


def mean_gradient(point: Tensor, index: int, rank: int, samples: int) -> Tensor:
    total = torch.zeros_like(point)
    for sample in range(samples):
        total += gradient(point, index, rank, sample) / samples
    return total


def add_scaled_sign(total: Tensor, value: Tensor, workers: int, step: int, stream: int, index: int) -> None:
    """Equation 8: the random sign, 0 for 0, times its scale, which is rounded after the division."""
    noise = random_uniform(SEED, step, stream, index, value.numel()).view(value.shape)
    scale = value.abs().max().item()
    total.add_(torch.where(value == 0, 0.0, (noise * scale + value).sign()), alpha=scale / workers)


def owners_answer(kept: Tensor, workers: int, step: int, index: int) -> Tensor:
    """Equation 8 with a scale for each owner's part."""
    answer = torch.zeros(kept.numel())
    noise = random_uniform(SEED, step, SERVER_STREAM, index, kept.numel())
    for begin, end in pairwise(OWNED[workers]):
        part = slice(max(0, begin - OFFSETS[index]), max(0, end - OFFSETS[index]))
        if (value := kept.flatten()[part]).numel():
            scale = value.abs().max()
            answer[part] = scale * (noise[part] * scale + value).sign() * (value != 0)
    return answer.view(kept.shape)


def reference(method: str, workers: int, first: int = 0) -> list[Tensor]:
    """The recursion on whole tensors; ``first`` samples in the first batch, sent exactly (0: one, as Q)."""
    points = [torch.zeros(shape) for shape in SHAPES]
    previous, kept = copy.deepcopy(points), copy.deepcopy(points)
    old, decay = (1.0, 1.0) if method in FINITE_SUM else (0.75, 1 - LR * 0.5)
    for step in range(STEPS):
        exact = SAMPLES * (step % PERIOD == 0) if method in FINITE_SUM else first * (step == 0)
        for k, z in enumerate(kept):
            mean = torch.zeros(SHAPES[k])
            for rank in range(workers):
                if exact:
                    mean += mean_gradient(points[k], k, rank, exact)
                else:
                    h = gradient(points[k], k, rank, step)
                    if step > 0:
                        h = torch.sub(h, gradient(previous[k], k, rank, step), alpha=old)  # rounded once
                    add_scaled_sign(mean, h, workers, step, encoder_stream(rank), k)
            kept[k] = mean / workers if exact else old * z + mean
            answer = owners_answer(kept[k], workers, step, k) if "Q" in method else kept[k].sign()
            previous[k], points[k] = points[k], decay * points[k] - LR * answer
    return points


Weights = list[nn.Parameter]


def zeros() -> Weights:
    return [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]


def make(method: str, weights: Weights, **changes: Any) -> Any:
    kind, options = METHODS[method]
    return kind(weights, lr=LR, vote=ScaledMeanVote(seed=SEED), **{**options, **changes})


def fill(weights: Weights, rank: int, samples: int | None = None, step: int = 0) -> None:
    """Leave a minibatch's gradients in ``.grad``; of a larger batch their mean, sample by sample."""
    for k, weight in enumerate(weights):
        here = weight.detach()
        if samples is None:
            weight.grad = gradient(here, k, rank, step)
        else:
            weight.grad = mean_gradient(here, k, rank, samples)


def steps(optimizer: SignOptimizer, weights: Weights, rank: int, first: int, count: int) -> None:
    for step in range(first, first + count):
        if getattr(optimizer, "snapshot_due", False):
            with optimizer.take_snapshot():  # type: ignore[attr-defined]
                fill(weights, rank, SAMPLES)
        optimizer.step(lambda step=step: fill(weights, rank, step=step))


def train(rank: int, method: str, first: int = 0) -> list[Tensor]:
    weights = zeros()
    optimizer = make(method, weights)
    if first:
        with optimizer.large_first_batch():
            fill(weights, rank, first)
    steps(optimizer, weights, rank, 0, STEPS)
    return [weight.detach() for weight in weights]


CASES = [(method, 0) for method in METHODS] + [("DVRSign", FIRST), ("DVRQ", FIRST)]


def train_all(rank: int) -> list[list[Tensor]]:
    return [train(rank, method, first) for method, first in CASES]


@pytest.mark.parametrize(("method", "first"), CASES)
def test_one_worker_follows_the_formula_bit_for_bit(method: str, first: int) -> None:
    assert all(map(torch.equal, train(0, method, first), reference(method, 1, first)))


def test_three_workers_follow_the_formulas_bit_for_bit() -> None:
    expected = [reference(method, 3, first) for method, first in CASES]
    for replica in run_workers(train_all, 3):
        for case, mine, theirs in zip(CASES, replica, expected, strict=True):
            assert all(map(torch.equal, mine, theirs)), case


@pytest.mark.parametrize("method", ["DVRSign", "DVRSignFS"])
def test_the_previous_iterate_can_be_rebuilt(method: str) -> None:
    """Without decay all points are multiples of the learning rate, so nothing is rounded."""
    found = []
    for way in ("copy", "rebuild"):
        weights = zeros()
        optimizer = make(method, weights, previous_iterate=way, weight_decay=0.0)
        steps(optimizer, weights, 0, 0, STEPS)
        found.append(torch.cat([weight.detach().flatten() for weight in weights]))
    assert torch.equal(*found)


@pytest.mark.parametrize("kind", [DVRQ, DVRQFS])
def test_scaled_answers_cannot_be_undone(kind: Callable[..., Any]) -> None:
    weights = zeros()
    optimizer = kind([{"params": weights, "previous_iterate": "rebuild"}], vote=ScaledMeanVote(seed=SEED))
    with pytest.raises(TypeError, match='use previous_iterate="copy"'):
        steps(optimizer, weights, 0, 0, 1)


def final_distance(method: str, lr: float, decay: bool, **options: Any) -> float:
    """Mean distance from the minimizer of ten quadratics, with batches of one."""
    generator = torch.Generator().manual_seed(0)
    curvature = 0.5 + 2 * torch.rand(10, 6, generator=generator).double()
    target = 3 * torch.randn(10, 6, generator=generator).double()
    order = torch.randint(10, (400,), generator=generator)
    weight = nn.Parameter(torch.zeros(6, dtype=torch.float64))
    optimizer = METHODS[method][0]([weight], lr=lr, **options)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(order) if decay else 10**9)
    for sample in order.tolist():
        if getattr(optimizer, "snapshot_due", False):
            with optimizer.take_snapshot():
                weight.grad = (curvature * (weight.detach() - target)).mean(0)

        def closure(sample: int = sample) -> None:
            weight.grad = curvature[sample] * (weight.detach() - target[sample])

        optimizer.step(closure)
        schedule.step()
    minimizer = (curvature * target).sum(0) / curvature.sum(0)
    return (weight.detach() - minimizer).abs().mean().item()


def test_finite_sum_forms_reach_the_minimizer_where_the_others_do_not() -> None:
    assert final_distance("DVRSign", 0.02, True, beta=0.1) > 0.05
    assert final_distance("DVRSignFS", 0.02, True, period=10) < 1e-3
    assert final_distance("DVRQ", 0.02, True, beta=0.1) > 0.05
    assert final_distance("DVRQFS", 0.05, False, period=10) < 1e-9  # its step shrinks by itself


def refreshes(rank: int) -> dict[str, list[float]]:
    """Bits sent per parameter in each of five steps."""
    found = {}
    for method in METHODS:
        weight, generator = nn.Parameter(torch.zeros(100_000)), torch.Generator().manual_seed(rank)

        def closure(weight: nn.Parameter = weight, generator: torch.Generator = generator) -> None:
            weight.grad = torch.rand(weight.shape, generator=generator) + 0.5

        optimizer = make(method, [weight], **({"period": 3} if method in FINITE_SUM else {}))
        sent = [0]
        for step in range(5):
            if method in FINITE_SUM and optimizer.snapshot_due:
                with optimizer.take_snapshot():
                    closure()
            elif step == 0:
                with optimizer.large_first_batch():
                    closure()
            optimizer.step(closure)
            sent.append(optimizer.vote.traffic.bytes_sent)
        found[method] = [8 * (after - before) / weight.numel() for before, after in pairwise(sent)]
    return found


def test_exact_gradients_cost_32_bits_once() -> None:
    for found in run_workers(refreshes, 2):
        for method, bits in found.items():
            exact = (0, 3) if method in FINITE_SUM else (0,)
            expected = [(34 if step in exact else 2) / 2 for step in range(5)]
            assert bits == pytest.approx(expected, rel=0.02), method


def other_period(rank: int, method: str) -> None:
    weights = zeros()
    steps(make(method, weights, period=3 + rank), weights, rank, 0, 5)


def test_another_period_ends_with_an_error_on_all_workers() -> None:
    with pytest.raises(WorkerError) as caught:
        run_workers(other_period, 2, "DVRSignFS", timeout=20)
    message = str(caught.value)
    assert "rank 0 sends a gradient in full precision in this step and this rank does not" in message
    assert "rank 1 does not send a gradient in full precision in this step and this rank does" in message


def partly_used(rank: int) -> list[list[float]]:
    """One parameter that only rank 0 uses and one that nobody does, over a snapshot and another step."""
    both, one, none = (nn.Parameter(torch.full((2,), 8.0)) for _ in range(3))
    optimizer = DVRQFS([both, one, none], lr=0.5, period=9, weight_decay=0.5)
    with optimizer.take_snapshot():
        both.grad = torch.full((2,), 4.0)
        one.grad = torch.full((2,), 8.0) if rank == 0 else None
    none.grad = torch.ones(2)  # not in the snapshot: does not count
    optimizer.step()
    return [weight.tolist() for weight in (both, one, none)]


def test_a_gradient_that_a_worker_lacks_counts_as_0() -> None:
    expected = [[8 * 0.75 - 2.0] * 2, [8 * 0.75 - 2.0] * 2, [8.0] * 2]
    assert run_workers(partly_used, 2) == [expected, expected]


def gathered(optimizer: SignOptimizer) -> dict[str, Any]:
    """What a checkpoint holds: the states of all ranks, as rank 0 saves them."""
    saved = [copy.deepcopy(with_rank_states(optimizer.state_dict(), torch.device("cpu")))]
    dist.broadcast_object_list(saved)
    return saved[0]


def resume(rank: int, method: str) -> bool:
    """From the middle of a period, on all workers."""
    weights = zeros()
    optimizer = make(method, weights)
    steps(optimizer, weights, rank, 0, PERIOD + 3)
    state, twins = gathered(optimizer), copy.deepcopy(weights)
    twin = make(method, twins)
    twin.load_state_dict(own_rank_state(state, rank, 2))
    for each, values in ((optimizer, weights), (twin, twins)):
        steps(each, values, rank, PERIOD + 3, PERIOD)
    return all(map(torch.equal, weights, twins))


def resume_all(rank: int) -> list[bool]:
    return [resume(rank, method) for method in METHODS]


def test_resumes_in_the_middle_of_a_period() -> None:
    assert run_workers(resume_all, 2) == [[True] * len(METHODS)] * 2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", ["state_dict", "deepcopy"])
def test_a_gradient_given_beforehand_survives(method: str, way: str) -> None:
    weights = zeros()
    optimizer = make(method, weights)
    with optimizer.take_snapshot() if method in FINITE_SUM else optimizer.large_first_batch():
        fill(weights, 0, SAMPLES)
    if way == "deepcopy":
        twins, twin = copy.deepcopy((weights, optimizer))
    else:
        twins = copy.deepcopy(weights)
        twin = make(method, twins, period=99) if method in FINITE_SUM else make(method, twins, beta=1.0)
        twin.load_state_dict(optimizer.state_dict())
    for each, values in ((optimizer, weights), (twin, twins)):
        each.step()  # needs no gradient of a minibatch
        steps(each, values, 0, 1, 5)
    assert all(map(torch.equal, weights, twins))
    assert bool(weights[0].any())


@pytest.mark.parametrize("method", FINITE_SUM)
def test_a_snapshot_is_used_up_by_one_step(method: str) -> None:
    weights, calls = zeros(), []
    optimizer = make(method, weights)
    with pytest.raises(RuntimeError, match=rf"{method} needs a new snapshot.*SnapshotGradient"):
        optimizer.step()
    with optimizer.take_snapshot():
        fill(weights, 0, SAMPLES)
    assert not optimizer.snapshot_due
    assert list(optimizer.active_anchors()) == []
    optimizer.step(lambda: calls.append(fill(weights, 0)))
    assert len(calls) == 1  # nothing to compare with in this step
    assert {tuple(optimizer.state[weight]) for weight in weights} == {("previous_iterate",)}
    assert list(optimizer.active_anchors()) == ["previous"]
    fill(weights, 0)
    with pytest.raises(RuntimeError, match=r"at 'previous' too"):
        optimizer.step()


@pytest.mark.parametrize("kind", [SSVR, SSVRMV])
def test_storm_begins_at_the_large_first_batch(kind: Callable[..., Any]) -> None:
    weight = nn.Parameter(torch.zeros(4))
    optimizer = kind([weight], lr=0.5, beta=0.25, vote=None)
    weight.grad = own = torch.ones(4)
    with optimizer.large_first_batch():
        for share in (0.25, 0.75):
            (share * weight @ torch.tensor([-1.0, 2.0, -3.0, 4.0])).backward()
    assert weight.grad is own
    optimizer.step()
    assert optimizer.state[weight]["estimate"].tolist() == [-1, 2, -3, 4]
    assert "full_gradient" not in optimizer.state[weight]
    weight.grad = torch.ones(4)
    with optimizer.at_previous_iterate():
        weight.grad = torch.full((4,), 5.0)
    optimizer.step()
    assert optimizer.state[weight]["estimate"].tolist() == [1 + 0.75 * (v - 5) for v in (-1, 2, -3, 4)]


@pytest.mark.parametrize("kind", [SSVR, DVRQ])
def test_a_large_first_batch_comes_first_and_has_a_gradient(kind: Callable[..., Any]) -> None:
    weight = nn.Parameter(torch.zeros(4))
    optimizer = kind([weight])
    with pytest.raises(RuntimeError, match=r"call backward\(\) in it"), optimizer.large_first_batch():
        pass
    weight.grad = torch.ones(4)
    optimizer.step()
    with (
        pytest.raises(RuntimeError, match=r"from 1 step\(s\): call it before the first step only"),
        optimizer.large_first_batch(),
    ):
        pass


def test_exact_on_one_worker_alone_is_an_error() -> None:
    with pytest.raises(WorkerError, match="a large first batch on all of them or on none"):
        run_workers(first_batch_on_rank_one, 2, timeout=20)


def first_batch_on_rank_one(rank: int) -> None:
    weights = zeros()
    optimizer = make("DVRSign", weights)
    if rank == 1:
        with optimizer.large_first_batch():
            fill(weights, rank, FIRST)
    steps(optimizer, weights, rank, 0, 1)


@pytest.mark.parametrize(
    ("kind", "name", "value", "error"),
    [
        (DVRQ, "beta", 0.0, ValueError),
        (DVRSignFS, "period", 0, ValueError),
        (DVRQFS, "period", 1.5, TypeError),
        (DVRQFS, "lr", -1.0, ValueError),
    ],
)
def test_bad_arguments_are_named(
    kind: Callable[..., Any], name: str, value: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match=name):
        kind([nn.Parameter(torch.zeros(1))], **{name: value})
