"""Lion against its formula, alone and with other workers."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_signvr import MajorityVote, Signum
from lightning_signvr.optimizers.lion import Lion
from lightning_signvr.voting import MeanVote
from tests.optimizers.problems import SIZE, gradient, majority
from tests.workers import run_workers

STEPS = 50
LR = 1 / 16
OPTIONS: list[dict[str, Any]] = [
    {"betas": (0.5, 0.75)},
    {"betas": (0.75, 0.5), "weight_decay": 0.5},
    {"betas": (0.0, 0.5)},
    {},
    {"maximize": True},
    {"betas": (0.5, 0.75), "weight_decay": 0.5, "average": True},
]


def mean_sign(directions: list[Tensor]) -> Tensor:
    total = torch.stack(directions).sign().sum(0)
    return (total.float() / len(directions)).double()


def reference(workers: int, betas: tuple[float, float] = (0.9, 0.99), **options: Any) -> Tensor:
    """``u = b1 m + (1 - b1) g``; ``m = b2 m + (1 - b2) g``; ``x = x - lr (vote(sign(u)) + wd x)``."""
    vote = mean_sign if options.get("average") else majority
    now, later = betas
    point = torch.zeros(SIZE, dtype=torch.float64)
    averages = [torch.zeros_like(point) for _ in range(workers)]
    sign = 1 if options.get("maximize") else -1
    for step in range(STEPS):
        directions = []
        for rank in range(workers):
            fresh = gradient(point, rank, step)
            directions.append(now * averages[rank] + (1 - now) * fresh)
            averages[rank] = later * averages[rank] + (1 - later) * fresh
        point = (1 - LR * options.get("weight_decay", 0.0)) * point + sign * LR * vote(directions)
    return point


def train(rank: int, options: dict[str, Any], vote: MajorityVote | None = None) -> Tensor:
    weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    weight.grad = torch.zeros_like(weight)
    if vote is None and not options.get("average"):
        vote = MajorityVote(ties="positive")
    optimizer = Lion([weight], LR, vote=vote, **options)
    for step in range(STEPS):
        weight.grad.copy_(gradient(weight.detach(), rank, step))  # reused memory, as under DDP
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_one_worker_follows_the_formula_bit_for_bit(options: dict[str, Any]) -> None:
    assert torch.equal(train(0, options), reference(1, **options))


def train_all(rank: int) -> list[Tensor]:
    assert train(rank, {}, MeanVote()).equal(train(rank, {"average": True}))
    return [train(rank, options) for options in OPTIONS]


def test_three_workers_follow_the_formula_bit_for_bit() -> None:
    expected = [reference(3, **options) for options in OPTIONS]
    for replica in run_workers(train_all, 3):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(replica, expected, strict=True))


def test_direction_takes_the_old_average() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = Lion([weight], lr=1.0, betas=(0.875, 0.5))
    weight.grad = torch.tensor([1.0])
    optimizer.step()  # m = 1/2
    weight.grad = torch.tensor([-3.0])
    optimizer.step()  # u = 7/16 - 3/8 > 0; of the new average, -5/4, it would be negative
    assert weight.item() == -2.0
    assert optimizer.state[weight]["momentum_buffer"].item() == 0.25 - 1.5


def test_equal_betas_are_signum() -> None:
    ours, theirs = (nn.Parameter(torch.zeros(SIZE, dtype=torch.float64)) for _ in range(2))
    lion, signum = Lion([ours], LR, betas=(0.75, 0.75)), Signum([theirs], LR, momentum=0.75)
    for step in range(STEPS):
        ours.grad, theirs.grad = gradient(ours.detach(), 0, step), gradient(theirs.detach(), 0, step)
        lion.step()
        signum.step()
    assert torch.equal(ours, theirs)


def test_only_the_average_is_kept() -> None:
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.tensor([1.0, -2.0, 3.0])
    optimizer = Lion([weight], lr=0.1)
    optimizer.step()
    assert weight.grad.tolist() == [1.0, -2.0, 3.0]
    assert list(optimizer.state[weight]) == ["momentum_buffer"]
    before = optimizer.state[weight]["momentum_buffer"].clone()
    weight.grad.zero_()
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], before)


def test_resumes_exactly(tmp_path: Any) -> None:
    def steps(weight: nn.Parameter, optimizer: Lion, first: int) -> None:
        for step in range(first, first + 5):
            weight.grad = gradient(weight.detach(), 0, step)
            optimizer.step()

    weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimizer = Lion([weight], LR, betas=(0.5, 0.75))
    steps(weight, optimizer, 0)
    torch.save([weight.detach(), optimizer.state_dict()], tmp_path / "state.pt")
    value, state = torch.load(tmp_path / "state.pt", weights_only=True)
    twin = nn.Parameter(value)
    twin_optimizer = Lion([twin], lr=1.0)
    twin_optimizer.load_state_dict(state)
    steps(weight, optimizer, 5)
    steps(twin, twin_optimizer, 5)
    assert torch.equal(weight, twin)


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_copies_know_that_they_average(copy_of: Any) -> None:
    twin = copy_of(Lion([nn.Parameter(torch.zeros(3))], average=True))
    assert twin.vote_is_default
    assert twin.vote_class is type(twin.vote) is MeanVote


def test_averaging_needs_a_mean() -> None:
    with pytest.raises(TypeError, match="vote must be a MeanVote or None for Lion"):
        Lion([nn.Parameter(torch.zeros(3))], average=True, vote=MajorityVote())


def test_16_bit_parameters_have_a_float32_average() -> None:
    weight = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optimizer = Lion([weight], lr=0.5, betas=(0.5, 0.999))
    for number in (1.0, 2.0**-8):  # the second one would be lost in a bfloat16 average
        weight.grad = torch.full((1,), number, dtype=torch.bfloat16)
        optimizer.step()
    average = optimizer.state[weight]["momentum_buffer"]
    assert average.dtype == torch.float32
    assert average.item() == pytest.approx(0.999 * 0.001 + 0.001 / 256, rel=1e-6)
    assert weight.item() == -1.0


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("betas", (0.9, 1.0), ValueError),
        ("betas", (-0.1, 0.99), ValueError),
        ("betas", (float("nan"), 0.99), ValueError),
        ("betas", (0.9, "slow"), TypeError),
        ("betas", 0.9, TypeError),
        ("betas", (0.9, 0.99, 0.999), TypeError),
        ("lr", -1.0, ValueError),
        ("weight_decay", -0.1, ValueError),
    ],
)
def test_bad_arguments_are_named(name: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=name):
        Lion([nn.Parameter(torch.zeros(1))], **{name: value})  # type: ignore[arg-type]
