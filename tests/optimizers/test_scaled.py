"""EF-Signum, EF-Lion and DVR-Sign: scaled signs up, the sign of the owner's state down."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_signvr import MajorityVote, SignSGD
from lightning_signvr.optimizers import DVRSign, EFLion, EFSignum, SignOptimizer
from lightning_signvr.optimizers.rank_states import own_rank_state, with_rank_states
from lightning_signvr.signs import random_uniform
from lightning_signvr.voting import ScaledMeanVote
from lightning_signvr.voting.rules import encoder_stream
from tests.workers import WorkerError, run_workers

STEPS, LR, SEED = 50, 1 / 16, 3
SHAPES = [(5, 7), (3,), (1,), (40,)]
METHODS: dict[str, tuple[Callable[..., SignOptimizer], dict[str, Any]]] = {
    "EFSignum": (EFSignum, {"momentum": 0.75, "weight_decay": 0.5}),
    "EFLion": (EFLion, {"betas": (0.5, 0.75)}),
    "DVRSign": (DVRSign, {"beta": 0.25}),
}


def gradient(point: Tensor, index: int, rank: int, step: int) -> Tensor:
    """Of a quadratic whose curvature (some of it zero) and target differ between samples."""
    generator = torch.Generator().manual_seed(7919 * index + 1000 * rank + step)
    curvature = torch.randint(0, 4, point.shape, generator=generator).to(point.dtype)
    target = torch.randn(point.shape, generator=generator).to(point.dtype)
    return curvature * (point - target)


def reference(method: str, workers: int) -> list[Tensor]:
    """The formulas with the plain mean of the workers' scaled signs; ``z`` is a whole tensor here."""
    points = [torch.zeros(shape) for shape in SHAPES]
    previous = [p.clone() for p in points]
    errors = [[torch.zeros(shape) for shape in SHAPES] for _ in range(workers)]
    kept = [torch.zeros(shape) for shape in SHAPES]
    for step in range(STEPS):
        for k, z in enumerate(kept):
            mean = torch.zeros(SHAPES[k])
            for rank in range(workers):
                g = gradient(points[k], k, rank, step)
                if method == "DVRSign":
                    h = g - 0.75 * gradient(previous[k], k, rank, step) if step else g
                    scale = h.abs().max().item()
                    noise = random_uniform(SEED, step, encoder_stream(rank), k, h.numel()).view(h.shape)
                    sign = torch.where(h == 0, 0.0, (noise * scale + h).sign())
                else:
                    p = g + errors[rank][k]
                    scale, sign = p.abs().mean().item(), p.sign()
                    errors[rank][k] = p - scale * sign
                mean.add_(sign, alpha=scale / workers)
            direction = 0.5 * z + 0.5 * mean
            kept[k] = 0.75 * z + (1.0 if method == "DVRSign" else 0.25) * mean
            voted = (direction if method == "EFLion" else kept[k]).sign()
            decay = 1 - LR * 0.5 if method == "EFSignum" else 1.0
            previous[k], points[k] = points[k], decay * points[k] - LR * voted
    return points


def make(method: str, weights: list[nn.Parameter]) -> SignOptimizer:
    kind, options = METHODS[method]
    return kind(weights, lr=LR, vote=ScaledMeanVote(seed=SEED), **options)


def steps(optimizer: SignOptimizer, weights: list[nn.Parameter], rank: int, first: int, count: int) -> None:
    def fill(step: int) -> None:
        for k, weight in enumerate(weights):
            weight.grad = gradient(weight.detach(), k, rank, step)

    for step in range(first, first + count):
        optimizer.step(lambda step=step: fill(step))


def train(rank: int, method: str) -> list[Tensor]:
    weights = [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    steps(make(method, weights), weights, rank, 0, STEPS)
    return [weight.detach() for weight in weights]


def train_all(rank: int) -> list[list[Tensor]]:
    return [train(rank, method) for method in METHODS]


@pytest.mark.parametrize("method", METHODS)
def test_one_worker_follows_the_formula_bit_for_bit(method: str) -> None:
    assert all(map(torch.equal, train(0, method), reference(method, 1)))


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_follow_the_formulas_bit_for_bit(workers: int) -> None:
    expected = [reference(method, workers) for method in METHODS]
    for replica in run_workers(train_all, workers):
        for mine, theirs in zip(replica, expected, strict=True):
            assert all(map(torch.equal, mine, theirs))


def three_quadratics(rank: int) -> dict[str, float]:
    """f_j = (x - a_j)^2 / 2 with a = 1, 2, 10: Chen's toy, exact gradients."""
    target = (1.0, 2.0, 10.0)[rank]
    found = {}
    for name, kind in {"SignSGD": SignSGD, **{key: value[0] for key, value in METHODS.items()}}.items():
        weight = nn.Parameter(torch.zeros(1))
        optimizer = kind([weight], lr=0.2)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=120)
        for _ in range(120):
            optimizer.step(lambda weight=weight: setattr(weight, "grad", weight.detach() - target))
            schedule.step()
        found[name] = weight.item()
    return found


def test_a_vote_finds_the_median_and_scaled_means_find_the_mean() -> None:
    [found, *_] = run_workers(three_quadratics, 3)
    assert found["SignSGD"] == pytest.approx(2.0, abs=0.05)
    for name in METHODS:
        assert found[name] == pytest.approx(13 / 3, abs=0.1), name


def proposition_one(rank: int) -> float:
    """f' = 0.5 tanh x + (1/4, 1/4, -1/2): plain votes leave the minimizer 0; DVR-Sign stays."""
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = DVRSign([weight], lr=0.01, beta=0.5)
    offset = (0.25, 0.25, -0.5)[rank]
    for _ in range(50):
        optimizer.step(lambda: setattr(weight, "grad", 0.5 * torch.tanh(weight.detach()) + offset))
    return weight.item()


def test_dvr_sign_stays_at_the_minimizer_of_proposition_one() -> None:
    assert run_workers(proposition_one, 3) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("make_one", [lambda p: SignSGD(p, 0.01), lambda p: EFSignum(p, 0.01, momentum=0.98)])
def test_karimireddy_counterexample(make_one: Callable[..., SignOptimizer]) -> None:
    """f(x) = x / 4 on [-1, 1], gradients 4 (one time in four) and -1: the sign drifts up, feedback down."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = make_one([weight])
    generator = torch.Generator().manual_seed(0)
    for _ in range(1500):
        weight.grad = torch.where(torch.rand(1, generator=generator) < 0.25, 4.0, -1.0)
        optimizer.step()
        weight.data.clamp_(-1, 1)
    assert weight.item() * (1 if isinstance(optimizer, SignSGD) else -1) > 0.8


def test_error_feedback_loses_nothing() -> None:
    """What was sent and what is kept add up to all gradients."""
    weight = nn.Parameter(torch.zeros(33))
    optimizer = EFSignum([weight], momentum=0.0)
    total, sent = torch.zeros(33, dtype=torch.float64), torch.zeros(33, dtype=torch.float64)
    for step in range(20):
        weight.grad = torch.randn(33, generator=torch.Generator().manual_seed(step))
        total += weight.grad
        optimizer.step()
        sent += optimizer.state["owner"]["estimate"][:33]  # with momentum 0 it is what arrived
    assert torch.allclose(sent + optimizer.state[weight]["error"], total, atol=1e-4)


def resume(rank: int) -> tuple[bool, str]:
    """Ten steps, the last five again from a gathered checkpoint; then with a shard of another size."""
    weights = [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    optimizer = make("EFSignum", weights)
    steps(optimizer, weights, rank, 0, 5)
    gathered = [copy.deepcopy(with_rank_states(optimizer.state_dict(), torch.device("cpu")))]
    twins = [nn.Parameter(weight.detach().clone()) for weight in weights]
    steps(optimizer, weights, rank, 5, 5)
    dist.broadcast_object_list(gathered)
    twin = make("EFSignum", twins)
    twin.load_state_dict(own_rank_state(gathered[0], rank, 2))
    steps(twin, twins, rank, 5, 5)
    equal = all(map(torch.equal, weights, twins))
    other = EFSignum([nn.Parameter(torch.zeros(500))])
    other.state["owner"] = twin.state["owner"]
    other.param_groups[0]["params"][0].grad = torch.ones(500)
    try:
        other.step()
    except RuntimeError as error:
        return equal, str(error)
    return equal, ""


def test_resumes_with_the_owners_state() -> None:
    for equal, message in run_workers(resume, 2):
        assert equal
        assert "owns one of 256" in message


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", ["state_dict", "deepcopy"])
def test_state_survives(method: str, way: str) -> None:
    weights = [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    optimizer = make(method, weights)
    steps(optimizer, weights, 0, 0, 5)
    if way == "deepcopy":
        twins, twin = copy.deepcopy((weights, optimizer))
    else:
        twins = copy.deepcopy(weights)
        twin = make(method, twins)
        twin.load_state_dict(optimizer.state_dict())
    steps(optimizer, weights, 0, 5, 5)
    steps(twin, twins, 0, 5, 5)
    assert all(map(torch.equal, weights, twins))


def huge_on_rank_one(rank: int) -> None:
    weight = nn.Parameter(torch.zeros(64))
    weight.grad = torch.full((64,), 3e38 if rank == 1 else 1.0)  # finite, and their sum is not
    EFSignum([weight]).step()


def test_a_scale_that_overflows_is_named_by_rank() -> None:
    with pytest.raises(WorkerError, match="rank 1 sent a scale that is negative or not finite"):
        run_workers(huge_on_rank_one, 2, timeout=20)


def test_other_votes_are_refused() -> None:
    weight = nn.Parameter(torch.zeros(3))
    with pytest.raises(TypeError, match="vote must be a ScaledMeanVote or None for EFSignum"):
        EFSignum([weight], vote=MajorityVote())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="use its cast"):
        ScaledMeanVote()([weight])
    with pytest.raises(ValueError, match="scales has 2 numbers for 1 tensors"):
        ScaledMeanVote().cast([weight], [1.0, 2.0], lambda index, elements, size, mean: mean)


@pytest.mark.parametrize(
    ("kind", "name", "value", "error"),
    [
        (EFSignum, "momentum", 1.0, ValueError),
        (EFLion, "betas", (0.9, 1.0), ValueError),
        (EFLion, "betas", 0.9, TypeError),
        (DVRSign, "beta", 0.0, ValueError),
        (DVRSign, "beta", 1.5, ValueError),
    ],
)
def test_bad_arguments_are_named(kind: Any, name: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=name):
        kind([nn.Parameter(torch.zeros(1))], **{name: value})
