"""SignProx against its formula, alone and with other workers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_signvr import LocalVote, MajorityVote, SignSGD
from lightning_signvr.optimizers.regularized import RegularizedOptimizer
from lightning_signvr.optimizers.signprox import SignProx, draw_components
from lightning_signvr.proximal import (
    L0,
    L1,
    Box,
    ElasticNet,
    GroupL21,
    NonNegative,
    Regularizer,
    SquaredL2,
    TotalVariation1d,
    TotalVariation2d,
)
from tests.optimizers.problems import SIZE, gradient, majority, samples
from tests.workers import run_workers

STEPS = 50
LR = 1 / 16
SEED = 11

Prox = Callable[[Tensor, float], Tensor]


def soft(x: Tensor, threshold: float) -> Tensor:
    return x.sign() * (x.abs() - threshold).clamp(min=0)


def pairs(start: int, strength: float) -> Prox:
    """Both of each pair approach each other by ``step * strength``, at most to their mean."""

    def prox(x: Tensor, step: float) -> Tensor:
        x = x.clone()
        for i in range(start, len(x) - 1, 2):
            mean, half = (x[i] + x[i + 1]) / 2, (x[i + 1] - x[i]) / 2
            left = soft(half, step * strength)
            x[i], x[i + 1] = mean - left, mean + left
        return x

    return prox


CASES: list[tuple[Regularizer, list[Prox], dict[str, Any]]] = [
    (L1(1.5), [lambda x, step: soft(x, step * 1.5)], {}),
    (L1(1.5), [lambda x, step: soft(x, step * 1.5)], {"prox_step": 0.25}),
    (L1(1.5), [lambda x, step: soft(x, step * 1.5)], {"maximize": True, "weight_decay": 0.5}),
    (Box(-0.25, 1.0), [lambda x, step: x.clamp(-0.25, 1.0)], {"components_per_step": 5}),
    (TotalVariation1d(0.5), [pairs(0, 1.0), pairs(1, 1.0)], {}),
    (TotalVariation1d(0.5), [pairs(0, 1.0), pairs(1, 1.0)], {"components_per_step": 1}),
    (TotalVariation1d(0.5), [pairs(0, 1.0), pairs(1, 1.0)], {"components_per_step": 5, "prox_step": 0.5}),
]


def reference(workers: int, proxes: list[Prox], options: dict[str, Any]) -> Tensor:
    """``P = (1/B) sum_b prox_{k_b}(x - step g)``; ``x = x - lr (vote(sign(x - P)) + wd x)``."""
    x = torch.zeros(SIZE, dtype=torch.float64)
    step, draws = options.get("prox_step") or LR, options.get("components_per_step")
    uphill = -1 if options.get("maximize") else 1
    for t in range(STEPS):
        mappings = []
        for rank in range(workers):
            key = np.array([SEED, 3 * 2**32 + rank], np.uint64)
            raw = np.random.Philox(key=key, counter=np.array([0, t, 0, 0], np.uint64)).random_raw(draws or 1)
            chosen = range(len(proxes)) if draws is None else [int(n) % 2**63 % len(proxes) for n in raw]
            z = x - step * uphill * gradient(x, rank, t)
            mappings.append(uphill * (x - sum(proxes[k](z, step) for k in chosen) / len(chosen)))
        x = (1 - LR * options.get("weight_decay", 0.0)) * x - LR * uphill * majority(mappings)
    return x


def train(rank: int, regularizer: Regularizer | None, options: dict[str, Any]) -> Tensor:
    weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    weight.grad = torch.zeros_like(weight)
    vote = MajorityVote(ties="positive", seed=SEED)
    optimizer = SignProx([weight], LR, regularizer, vote=vote, **options)
    for step in range(STEPS):
        weight.grad.copy_(gradient(weight.detach(), rank, step))
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize(
    ("regularizer", "proxes", "options"), CASES, ids=[f"{case[0]} {case[2]}" for case in CASES]
)
def test_one_worker_follows_the_formula_bit_for_bit(
    regularizer: Regularizer, proxes: list[Prox], options: dict[str, Any]
) -> None:
    assert torch.equal(train(0, regularizer, options), reference(1, proxes, options))


def train_all(rank: int) -> list[Tensor]:
    return [train(rank, regularizer, options) for regularizer, _, options in CASES]


def test_three_workers_follow_the_formula_bit_for_bit() -> None:
    expected = [reference(3, proxes, options) for _, proxes, options in CASES]
    for replica in run_workers(train_all, 3):
        for case, mine, theirs in zip(CASES, replica, expected, strict=True):
            assert torch.equal(mine, theirs), case


NOTHING = [None, L1(0.0), SquaredL2(0.0), L0(0.0), TotalVariation1d(0.0), Box(-1e9, 1e9)]


@pytest.mark.parametrize("regularizer", NOTHING, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_without_regularization_it_is_signsgd(regularizer: Regularizer | None, dtype: torch.dtype) -> None:
    ours, theirs = (nn.Parameter(torch.linspace(-2, 2, 31).to(dtype)) for _ in range(2))
    options: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1}
    signprox, signsgd = SignProx([ours], regularizer=regularizer, **options), SignSGD([theirs], **options)
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):  # gradients of all sizes, far below the precision of the weights too
        sizes = 10.0 ** torch.randint(-20, 3, (31,), generator=generator)
        ours.grad = theirs.grad = (torch.randn(31, generator=generator) * sizes).to(dtype)
        signprox.step()
        signsgd.step()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("lr", [0.1, 0.25, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_zeros_with_small_gradients_stay(lr: float, dtype: torch.dtype) -> None:
    strength = 0.375
    weight = nn.Parameter(torch.zeros(6, dtype=dtype))
    optimizer = SignProx([weight], lr, L1(strength))
    weight.grad = torch.tensor([strength, -strength, 0.1, -0.3, 0.0, 0.4], dtype=dtype)
    for _ in range(3):
        optimizer.step()
    assert weight[:5].tolist() == [0.0] * 5
    assert weight[5].item() < 0


@pytest.mark.parametrize("lr", [0.1, 0.013])
def test_a_bound_that_the_gradient_points_beyond_is_kept(lr: float) -> None:
    weight = nn.Parameter(torch.tensor([0.3, -0.7], dtype=torch.float64))
    optimizer = SignProx([weight], lr, Box(-0.7, 0.3))
    weight.grad = torch.tensor([-0.123, 0.456], dtype=torch.float64)
    optimizer.step()
    assert weight.tolist() == [0.3, -0.7]


def test_small_regularizers_of_float32_weights_count() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = SignProx([weight], 1e-4, L1(2e-5))  # lr * strength is far below the rounding of 1
    weight.grad = torch.tensor([-1e-5, -3e-5])
    optimizer.step()
    assert weight[0] < 1 < weight[1]


def lasso() -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Gradient of ``|A x - b|^2 / 120`` and the minimizer of it plus ``0.25 |x|_1``."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(60, 10, dtype=torch.float64, generator=generator)
    truth = torch.tensor([2.0, -1.5, 0, 0, 0, 1.0, 0, 0, 0, 0], dtype=torch.float64)
    observed = matrix @ truth + 0.1 * torch.randn(60, dtype=torch.float64, generator=generator)

    def slope(x: Tensor) -> Tensor:
        return matrix.T @ (matrix @ x - observed) / 60

    x = torch.zeros(10, dtype=torch.float64)
    for _ in range(2000):
        x = soft(x - 0.3 * slope(x), 0.3 * 0.25)
    return slope, x


@pytest.mark.parametrize("prox_step", [None, 0.1])
def test_finds_the_lasso(prox_step: float | None) -> None:
    slope, solution = lasso()
    weight = nn.Parameter(torch.zeros(10, dtype=torch.float64))
    optimizer = SignProx([weight], 0.05, L1(0.25), prox_step=prox_step)
    final = 1e-4
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: max(0.99**t, final / 0.05))
    for _ in range(800):
        weight.grad = slope(weight.detach())
        optimizer.step()
        schedule.step()
    assert (weight.detach() - solution).abs().max() <= final
    optimizer.clean_up(step=final / 0.25)
    assert torch.equal(weight.detach() == 0, solution == 0)
    assert (weight.detach() - solution).abs().max() <= 2 * final


def test_is_there_once_at_the_solution() -> None:
    """A fixed point of the proximal gradient method is one of SignProx, to the last bit."""
    weight = nn.Parameter(torch.tensor([1.0, -0.5, 0.0], dtype=torch.float64))
    optimizer = SignProx([weight], 0.125, ElasticNet(l1=0.5, l2=1.0))
    for _ in range(5):
        weight.grad = torch.tensor([-1.5, 1.0, 0.25], dtype=torch.float64)  # -(l1 sign(x) + l2 x), and inside
        optimizer.step()
    assert weight.tolist() == [1.0, -0.5, 0.0]


def test_maximize_goes_up_in_the_loss_and_down_in_the_regularizer() -> None:
    results = []
    for sign in (1, -1):
        weight = nn.Parameter(torch.linspace(-1, 1, 9))
        optimizer = SignProx([weight], LR, L1(0.5), maximize=sign < 0)
        for step in range(20):
            weight.grad = sign * (samples(0, step)[0][:9].float() * weight.detach() - 0.75)
            optimizer.step()
        results.append(weight.detach())
    assert torch.equal(*results)


def test_groups_have_their_own_regularizers() -> None:
    weights = [nn.Parameter(torch.full((4,), 1.0)) for _ in range(3)]
    given = [
        {"params": [weights[0]], "prox_step": 0.5},
        {"params": [weights[1]], "regularizer": None},
    ]
    optimizer = SignProx(given, 0.25, L1(1.0))
    optimizer.add_param_group({"params": [weights[2]], "regularizer": NonNegative(), "lr": 0.125})
    assert optimizer.regularizers == [L1(1.0), None, NonNegative()]
    assert given[1]["regularizer"] is None  # the caller's
    for weight in weights:
        weight.grad = torch.tensor([-0.5, 0.5, -2.0, 0.0])
    optimizer.step()
    assert weights[0].tolist() == [0.75, 0.75, 1.25, 0.75]
    assert weights[1].tolist() == [1.25, 0.75, 1.25, 1.0]
    assert weights[2].tolist() == [1.125, 0.875, 1.125, 1.0]
    for saved in optimizer.state_dict()["param_groups"]:
        assert "regularizer" not in saved


def test_nothing_moves_at_a_learning_rate_of_zero() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = SignProx([weight], 0.1, L1(1.0))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    weight.grad = torch.tensor([1.0, -2.0, 0.0])
    optimizer.step()
    assert weight.tolist() == [1.0, 1.0, 1.0]
    optimizer.param_groups[0]["lr"] = 0.5  # the end of a warm-up
    optimizer.step()
    assert weight.tolist() == [0.5, 1.5, 0.5]


def test_draws_are_uniform_and_differ_between_steps_workers_and_groups() -> None:
    counts = draw_components(4, draws=40000, seed=1, step=2, stream=3, group=0)
    assert sum(counts) == 40000
    assert all(abs(count - 10000) < 400 for count in counts)
    keys = [(1, 2, 3, 0), (2, 2, 3, 0), (1, 3, 3, 0), (1, 2, 4, 0), (1, 2, 3, 1)]
    drawn = {tuple(draw_components(1000, 8, *key)) for key in keys}
    assert len(drawn) == len(keys)


def draws_of(rank: int, local: bool) -> list[list[int]]:
    weights = [nn.Parameter(torch.zeros(9)) for _ in range(2)]
    vote = LocalVote() if local else MajorityVote()
    groups = [{"params": [weight]} for weight in weights]
    optimizer = SignProx(groups, 1.0, TotalVariation1d(1.0), components_per_step=16, vote=vote)
    return [
        [count for _, count in optimizer._components(TotalVariation1d(1.0), group)]
        for group in optimizer.param_groups
    ]


def test_workers_draw_for_themselves_but_replicas_without_a_vote_alike() -> None:
    first, second = run_workers(draws_of, 2, False)
    assert first != second
    first, second = run_workers(draws_of, 2, True)
    assert first == second
    assert first[0] != first[1]


def test_clean_up() -> None:
    weights = [nn.Parameter(torch.tensor([0.25, -2.0, 0.5])) for _ in range(3)]
    weights[2].requires_grad_(False)
    given = [{"params": [weights[0], weights[2]]}, {"params": [weights[1]], "regularizer": None}]
    optimizer = SignProx(given, 0.125, L1(2.0))
    optimizer.clean_up()
    assert weights[0].tolist() == [0.0, -1.75, 0.25]
    optimizer.clean_up(step=0.25)
    assert weights[0].tolist() == [0.0, -1.25, 0.0]
    assert weights[1].tolist() == weights[2].tolist() == [0.25, -2.0, 0.5]
    optimizer.param_groups[0]["lr"] = 0.0
    with pytest.raises(ValueError, match=r"step of the clean-up must be above 0, got 0.0: pass one"):
        optimizer.clean_up()


def test_clean_up_of_a_regularizer_without_prox_averages_its_components() -> None:
    image = torch.tensor([[0.0, 1.0], [5.0, 9.0]])
    weight = nn.Parameter(image.clone())
    SignProx([weight], 0.25, TotalVariation2d(1.0)).clean_up()
    expected = sum(each.prox(image, 0.25) for each in TotalVariation2d(1.0).components) / 4
    assert torch.equal(weight.detach(), expected)


@pytest.mark.parametrize("way", ["file", "deepcopy", "pickle"])
def test_state_survives(way: str, tmp_path: Path) -> None:
    def make(weight: nn.Parameter, lr: float) -> SignProx:
        return SignProx([weight], lr, TotalVariation1d(0.5), components_per_step=1)

    def steps(weight: nn.Parameter, optimizer: RegularizedOptimizer, first: int) -> None:
        for step in range(first, first + 10):
            weight.grad = gradient(weight.detach(), 0, step)
            optimizer.step()

    weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimizer = make(weight, LR)
    steps(weight, optimizer, 0)
    if way == "file":
        torch.save([weight.detach(), optimizer.state_dict()], tmp_path / "state.pt")
        value, state = torch.load(tmp_path / "state.pt", weights_only=True)
        twin = nn.Parameter(value)
        twin_optimizer = make(twin, 1.0)
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
        ("prox_step", 0.0, ValueError),
        ("prox_step", float("inf"), ValueError),
        ("prox_step", "small", TypeError),
        ("components_per_step", 0, ValueError),
        ("components_per_step", 1.5, TypeError),
        ("regularizer", 0.1, TypeError),
        ("regularizer", L1, TypeError),
        ("weight_decay", -0.1, ValueError),
        ("vote", "majority", TypeError),
    ],
)
def test_bad_arguments_are_named(name: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=name):
        SignProx([nn.Parameter(torch.zeros(1))], **{name: value})  # type: ignore[arg-type]


def test_a_bad_regularizer_of_a_group_is_named() -> None:
    with pytest.raises(TypeError, match=r"regularizer must be one of lightning_signvr\.proximal"):
        SignProx([{"params": [nn.Parameter(torch.zeros(1))], "regularizer": "l1"}])


@pytest.mark.parametrize("zeros", ["positive", "random"])
def test_a_vote_that_moves_zeros_is_refused(zeros: Any) -> None:
    weight = nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match=rf"zeros must be 'abstain' for SignProx, got '{zeros}': .* 0"):
        SignProx([weight], vote=MajorityVote(zeros=zeros))
    optimizer = SignProx([weight])
    with pytest.raises(ValueError, match="zeros must be 'abstain'"):  # as a strategy would
        optimizer.vote = MajorityVote(zeros=zeros)


def test_a_regularizer_that_does_not_fit_a_parameter_is_named() -> None:
    bias = nn.Parameter(torch.zeros(3))
    bias.grad = torch.ones(3)
    with pytest.raises(ValueError, match=r"TotalVariation2d|PairVariation.* needs x of shape"):
        SignProx([bias], regularizer=TotalVariation2d(1.0)).step()


def test_groups_of_coordinates_vanish_together() -> None:
    weight = nn.Parameter(torch.zeros(2, 3))
    optimizer = SignProx([weight], 0.25, GroupL21(1.0, dim=0))
    weight.grad = torch.tensor([[0.5, 0.5, 0.5], [1.0, 1.0, -1.0]])  # norms below and above 1
    optimizer.step()
    assert weight.tolist() == [[0.0, 0.0, 0.0], [-0.25, -0.25, 0.25]]
