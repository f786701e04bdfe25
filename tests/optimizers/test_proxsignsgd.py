"""ProxSignSGD against its formula, alone and with other workers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_signvr import MajorityVote, SignSGD, Signum
from lightning_signvr.optimizers.proxsignsgd import ProxSignSGD
from lightning_signvr.proximal import L1, Box, NonNegative, Regularizer, TotalVariation2d
from tests.optimizers.problems import SIZE, gradient, majority
from tests.workers import run_workers

STEPS = 50
LR = 1 / 16

Prox = Callable[[Tensor, float], Tensor]


def soft(x: Tensor, threshold: float) -> Tensor:
    return x.sign() * (x.abs() - threshold).clamp(min=0)


CASES: list[tuple[Regularizer, Prox, dict[str, Any]]] = [
    (L1(0.25), lambda x, step: soft(x, step * 0.25), {}),
    (L1(0.25), lambda x, step: soft(x, step * 0.25), {"momentum": 0.75}),
    (L1(0.5), lambda x, step: soft(x, step * 0.5), {"weight_decay": 0.5, "maximize": True}),
    (Box(-0.15625, 1.0), lambda x, step: x.clamp(-0.15625, 1.0), {"momentum": 0.5}),
]


def reference(workers: int, prox: Prox, options: dict[str, Any]) -> Tensor:
    """``m = b m + (1 - b) g``; ``x = prox(x - lr (vote(sign(m)) + wd x), lr)``."""
    x = torch.zeros(SIZE, dtype=torch.float64)
    averages = [torch.zeros_like(x) for _ in range(workers)]
    momentum, sign = options.get("momentum", 0.0), 1 if options.get("maximize") else -1
    for step in range(STEPS):
        for rank in range(workers):
            averages[rank] = momentum * averages[rank] + (1 - momentum) * gradient(x, rank, step)
        x = (1 - LR * options.get("weight_decay", 0.0)) * x + sign * LR * majority(averages)
        x = prox(x, LR)
    return x


def train(rank: int, regularizer: Regularizer | None, options: dict[str, Any]) -> Tensor:
    weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    weight.grad = torch.zeros_like(weight)
    optimizer = ProxSignSGD([weight], LR, regularizer, vote=MajorityVote(ties="positive"), **options)
    for step in range(STEPS):
        weight.grad.copy_(gradient(weight.detach(), rank, step))
        optimizer.step()
    return weight.detach()


NAMES = [f"{regularizer} {options}" for regularizer, _, options in CASES]


@pytest.mark.parametrize(("regularizer", "prox", "options"), CASES, ids=NAMES)
def test_one_worker_follows_the_formula_bit_for_bit(
    regularizer: Regularizer, prox: Prox, options: dict[str, Any]
) -> None:
    assert torch.equal(train(0, regularizer, options), reference(1, prox, options))


def train_all(rank: int) -> list[Tensor]:
    return [train(rank, regularizer, options) for regularizer, _, options in CASES]


def test_three_workers_follow_the_formula_bit_for_bit() -> None:
    expected = [reference(3, prox, options) for _, prox, options in CASES]
    for replica in run_workers(train_all, 3):
        for case, mine, theirs in zip(CASES, replica, expected, strict=True):
            assert torch.equal(mine, theirs), case


@pytest.mark.parametrize("regularizer", [None, L1(0.0)], ids=str)
@pytest.mark.parametrize("momentum", [0.0, 0.75])
def test_without_regularization_it_is_signsgd_or_signum(regularizer: Any, momentum: float) -> None:
    ours, theirs = (nn.Parameter(torch.linspace(-2, 2, SIZE)) for _ in range(2))
    optimizer = ProxSignSGD([ours], 1e-3, regularizer, momentum, weight_decay=0.1)
    plain = Signum([theirs], 1e-3, momentum, 0.1) if momentum else SignSGD([theirs], 1e-3, 0.1)
    for step in range(STEPS):
        ours.grad, theirs.grad = (gradient(each.detach(), 0, step).float() for each in (ours, theirs))
        optimizer.step()
        plain.step()
    assert torch.equal(ours, theirs)
    assert list(optimizer.state[ours]) == (["momentum_buffer"] if momentum else [])


def test_a_bound_is_kept_after_every_step_and_reached_exactly() -> None:
    weight = nn.Parameter(torch.tensor([0.35, -0.25]))
    optimizer = ProxSignSGD([weight], 0.1, NonNegative())
    optimizer.clean_up(step=0.1)
    assert weight.tolist() == pytest.approx([0.35, 0.0])
    for _ in range(5):
        weight.grad = torch.tensor([1.0, 1.0])
        optimizer.step()
        assert (weight >= 0).all()
    assert weight.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("strength", "rest"), [(0.5, 2.0), (1.5, 0.0)])
def test_strength_is_measured_in_votes(strength: float, rest: float) -> None:
    """With exact gradients the loss decides alone below a strength of 1, and not at all above."""
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = ProxSignSGD([weight], 1 / 64, L1(strength))
    for _ in range(400):
        weight.grad = 1e-3 * (weight.detach() - 2)  # the scale of the loss does not matter
        optimizer.step()
    assert abs(weight.item() - rest) <= (1 + strength) / 64
    assert (weight.item() == 0) == (rest == 0)


def test_coordinates_without_a_vote_shrink_but_tensors_without_a_gradient_do_not() -> None:
    voted, silent = nn.Parameter(torch.tensor([1.0, 1.0])), nn.Parameter(torch.ones(2))
    voted.grad = torch.tensor([0.0, -1.0])
    ProxSignSGD([voted, silent], 0.5, L1(0.25)).step()
    assert voted.tolist() == [0.875, 1.375]
    assert silent.tolist() == [1.0, 1.0]


def test_nothing_moves_at_a_learning_rate_of_zero() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = ProxSignSGD([weight], 0.0, Box(2.0, 3.0))
    weight.grad = torch.ones(2)
    optimizer.step()
    assert weight.tolist() == [1.0, 1.0]
    optimizer.param_groups[0]["lr"] = torch.tensor(0.5)
    optimizer.step()
    assert weight.tolist() == [2.0, 2.0]


def test_groups_have_their_own_regularizers() -> None:
    first, second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    groups = [{"params": [first]}, {"params": [second], "regularizer": Box(2, 3), "momentum": 0.5}]
    optimizer = ProxSignSGD(groups, 0.5, L1(0.5))
    first.grad = second.grad = torch.ones(1)
    optimizer.step()
    assert (first.item(), second.item()) == (0.25, 2.0)
    assert "regularizer" not in optimizer.state_dict()["param_groups"][1]


@pytest.mark.parametrize("way", ["file", "deepcopy", "pickle"])
def test_state_survives(way: str, tmp_path: Path) -> None:
    def steps(weight: nn.Parameter, optimizer: ProxSignSGD, first: int) -> None:
        for step in range(first, first + 10):
            weight.grad = gradient(weight.detach(), 0, step)
            optimizer.step()

    weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimizer = ProxSignSGD([weight], LR, L1(0.25), momentum=0.75)
    steps(weight, optimizer, 0)
    if way == "file":
        torch.save([weight.detach(), optimizer.state_dict()], tmp_path / "state.pt")
        value, state = torch.load(tmp_path / "state.pt", weights_only=True)
        twin = nn.Parameter(value)
        twin_optimizer = ProxSignSGD([twin], 1.0, L1(0.25))
        twin_optimizer.load_state_dict(state)
    elif way == "deepcopy":
        twin, twin_optimizer = copy.deepcopy((weight, optimizer))
    else:
        twin, twin_optimizer = pickle.loads(pickle.dumps((weight, optimizer)))
    steps(weight, optimizer, 10)
    steps(twin, twin_optimizer, 10)
    assert torch.equal(weight, twin)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("lr", -1.0, ValueError),
        ("momentum", 1.0, ValueError),
        ("momentum", "slow", TypeError),
        ("regularizer", "l1", TypeError),
        ("weight_decay", float("nan"), ValueError),
    ],
)
def test_bad_arguments_are_named(name: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=name):
        ProxSignSGD([nn.Parameter(torch.zeros(1))], **{name: value})  # type: ignore[arg-type]


def test_a_regularizer_without_prox_is_refused() -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(TypeError, match=r"TotalVariation2d.*no exact proximal operator.*use SignProx"):
        ProxSignSGD([weight], regularizer=TotalVariation2d(1.0))
    with pytest.raises(TypeError, match="no exact proximal operator"):
        ProxSignSGD([{"params": [weight], "regularizer": TotalVariation2d(1.0)}])
