"""SSVR-MV, both options, against its formula, its identities and the proposition on its bias."""

from __future__ import annotations

import copy
import math
import pickle
from fractions import Fraction
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_signvr.optimizers import SSVR
from lightning_signvr.optimizers.ssvrmv import SSVRMV
from lightning_signvr.optimizers.stosignsgd import StoSignSGD
from lightning_signvr.voting import LocalVote, MajorityVote, StochasticVote
from tests.optimizers.problems import SIZE, gradient, majority
from tests.optimizers.randomized import (
    LR,
    check_learns,
    check_resumes,
    check_unused_stay,
    radii_by,
    server_sign,
    steps,
    stochastic_sign,
    train,
    weights_at_zero,
)
from tests.workers import run_workers

STEPS = 50
BALL: dict[str, Any] = {"radius": 8.0, "radius_policy": "fixed", "option": 2}
OPTIONS: list[dict[str, Any]] = [
    {"radius": 16.0, "radius_policy": "fixed"},
    {"radius": 1.0, "radius_policy": "max", "weight_decay": 0.5},
    {"radius": 1.5, "radius_policy": "rms", "beta": 0.25},
    {"radius": 1.0, "radius_policy": "running"},
    {"radius": 1.0, "radius_policy": "max", "shared_radius": False},
]


def reference(
    workers: int,
    radius: float,
    radius_policy: str,
    beta: float = 0.5,
    weight_decay: float = 0.0,
    shared_radius: bool = True,
) -> Tensor:
    """``v = g + (1 - beta) (v - g^-)``, first ``v = g``; majority of ``S_R(v)``; step."""
    point = previous = torch.zeros(SIZE, dtype=torch.float64)
    before = None
    estimates, largest = [[torch.zeros_like(point)] * workers for _ in range(2)]
    for step in range(STEPS):
        for rank in range(workers):
            fresh, old = gradient(point, rank, step), gradient(previous, rank, step)
            estimates[rank] = fresh + (1 - beta) * (estimates[rank] - old) if step else fresh
            largest[rank] = torch.maximum(largest[rank], estimates[rank].abs())
        radii = radii_by(radius_policy, radius, estimates, largest, before)
        before = torch.stack(estimates) if shared_radius and workers > 1 else None
        ballots = [stochastic_sign(estimates[rank], radii[rank], rank, step) for rank in range(workers)]
        previous, point = point, (1 - LR * weight_decay) * point - LR * majority(ballots)
    return point


def reference_of_option_2(workers: int, correction: float) -> tuple[Tensor, int]:
    """``v`` projected onto the ball, signs ``S_G``, outcome ``S_1``; how often a projection changed it."""
    point = previous = torch.zeros(SIZE, dtype=torch.float64)
    estimates, radius, projections = [torch.zeros_like(point)] * workers, BALL["radius"], 0
    for step in range(STEPS):
        ballots = []
        for rank in range(workers):
            fresh, old = gradient(point, rank, step), gradient(previous, rank, step)
            v = (estimates[rank] + fresh) / 2 + correction * (fresh - old) / 2 if step else fresh
            projections += int(v.norm() > radius)
            estimates[rank] = v = v * min(1.0, radius / v.norm())
            ballots.append(stochastic_sign(v, torch.full_like(v, radius), rank, step))
        previous, point = point, point - LR * server_sign(ballots, step)
    return point, projections


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_one_worker_follows_the_formula_bit_for_bit(options: dict[str, Any]) -> None:
    assert torch.equal(train(0, SSVRMV, options), reference(1, **options))


@pytest.mark.parametrize("correction", [0.0, 1.0])
def test_option_2_of_one_worker_follows_the_formula(correction: float) -> None:
    expected, projections = reference_of_option_2(1, correction)
    assert torch.equal(train(0, SSVRMV, {**BALL, "correction": correction}), expected)
    assert 0.2 < projections / STEPS < 1


def train_all(rank: int) -> list[Tensor]:
    return [train(rank, SSVRMV, options) for options in (*OPTIONS[:3], OPTIONS[4], BALL)]


def test_three_workers_follow_the_formula_bit_for_bit() -> None:
    expected = [reference(3, **options) for options in (*OPTIONS[:3], OPTIONS[4])]
    of_option_2, projections = reference_of_option_2(3, correction=1.0)
    assert 0.2 < projections / STEPS / 3 < 1
    for replica in run_workers(train_all, 3):
        assert all(map(torch.equal, replica, [*expected, of_option_2]))


def test_beta_one_is_stosignsgd() -> None:
    radius = {"radius": 16.0, "radius_policy": "fixed"}
    assert torch.equal(train(0, SSVRMV, {"beta": 1.0, **radius}), train(0, StoSignSGD, radius))


def test_a_tiny_radius_is_ssvr() -> None:
    tiny = {"radius": 1e-30, "radius_policy": "fixed"}
    assert torch.equal(train(0, SSVRMV, tiny), train(0, SSVR, {"beta": 0.5}))


def test_correction_zero_needs_one_gradient() -> None:
    weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimizer = SSVRMV([weight], LR, correction=0.0)
    for step in range(5):
        weight.grad = gradient(weight.detach(), 0, step)
        optimizer.step()
    assert "previous_iterate" not in optimizer.state[weight]


def test_second_gradient_must_not_be_missing() -> None:
    weight = nn.Parameter(torch.zeros(SIZE))
    optimizer = SSVRMV([weight], LR)
    weight.grad = torch.ones(SIZE)
    optimizer.step()
    with pytest.raises(RuntimeError, match="SSVRMV needs the gradients"):
        optimizer.step()


# -- arXiv 2609.18656, proposition 1 ----------------------------------------------------------------

OUTCOMES = list(product((1.0, -1.0), repeat=3))  # of three workers' signs
DRAWS = 1 << 17
COPIES, COARSE = 4096, 1 / 16  # independent runs side by side, and their step


def slope(point: Tensor, rank: int) -> Tensor:
    """Of ``log cosh(x) / 2 + c x`` with c = 1/4, 1/4 and -1/2: the mean over workers is 0 at x = 0."""
    return torch.tanh(point) / 2 + (0.25, 0.25, -0.5)[rank]


def proposition(rank: int) -> dict[str, Any]:
    signs = torch.tensor([outcome[rank] for outcome in OUTCOMES])
    return {
        "majority": MajorityVote()([signs]).signs(0).tolist(),
        "drawn": StochasticVote()([signs.repeat(DRAWS, 1)]).signs(0).mean(0),
        "first steps": [first_step(rank, kind()) for kind in (MajorityVote, StochasticVote)],
        "descent": descend(rank),
    }


def first_step(rank: int, vote: MajorityVote) -> float:
    """Mean outcome at the minimizer, where the workers' slopes are R / 2, R / 2 and -R."""
    weight = nn.Parameter(torch.zeros(DRAWS))
    weight.grad = slope(weight.detach(), rank)
    SSVRMV([weight], lr=1.0, radius=0.5, radius_policy="fixed", vote=vote).step()
    return -weight.mean().item()


def descend(rank: int) -> list[Tensor]:
    """SSVR and SSVR-MV with exact gradients, from the minimizer of the mean."""
    weights = [nn.Parameter(torch.zeros(COPIES)) for _ in range(2)]
    ssvr = SSVR([weights[0]], COARSE, beta=0.5)
    ssvrmv = SSVRMV([weights[1]], COARSE, beta=0.5, radius=4.0, radius_policy="fixed")

    def closure() -> float:
        for weight in weights:
            weight.grad = slope(weight.detach(), rank)
        return 0.0

    for _ in range(20):
        ssvr.step(closure)
    for _ in range(150):
        ssvrmv.step(closure)
    return [weight.detach() for weight in weights]


@pytest.fixture(scope="module")
def played() -> dict[str, Any]:
    first, *others = run_workers(proposition, 3)
    for other in others:
        assert first["majority"] == other["majority"]
        assert first["first steps"] == other["first steps"]
        assert torch.equal(first["drawn"], other["drawn"])
        assert all(map(torch.equal, first["descent"], other["descent"]))
    return first  # type: ignore[no-any-return]


def expectation(outcomes: list[float], unit: Fraction) -> Fraction:
    """Of the vote, by the 8 outcomes of three signs with means ``(u, u, -2 u)``, whose mean is 0."""
    means = (unit, unit, -2 * unit)
    chances = [
        math.prod((1 + Fraction(sign) * mean) / 2 for sign, mean in zip(signs, means, strict=True))
        for signs in OUTCOMES
    ]
    return sum(
        (chance * Fraction(value) for chance, value in zip(chances, outcomes, strict=True)), Fraction(0)
    )


def test_option_1_is_biased_by_the_product_of_means(played: dict[str, Any]) -> None:
    assert expectation(played["majority"], Fraction(1, 16)) == Fraction(1, 4096)


def test_option_2_is_not_biased(played: dict[str, Any]) -> None:
    """Each outcome is drawn with the mean of its signs; of all outcomes the mean is then exactly 0."""
    means = [sum(map(Fraction, signs)) / 3 for signs in OUTCOMES]
    for drawn, mean in zip(played["drawn"].tolist(), means, strict=True):
        assert abs(drawn - mean) <= 4.5 * math.sqrt((1 - mean**2) / DRAWS)
    assert expectation(means, Fraction(1, 16)) == 0  # type: ignore[arg-type]


def test_the_optimizer_votes_with_that_bias_and_without(played: dict[str, Any]) -> None:
    by_majority, drawn = played["first steps"]
    assert expectation(played["majority"], Fraction(1, 2)) == Fraction(1, 8)
    assert by_majority == pytest.approx(1 / 8, abs=4.5 / math.sqrt(DRAWS))
    assert drawn == pytest.approx(0, abs=4.5 / math.sqrt(DRAWS))


def test_deterministic_votes_leave_the_minimizer_and_stochastic_ones_hover_there(
    played: dict[str, Any],
) -> None:
    deterministic, stochastic = played["descent"]
    assert (deterministic + math.atanh(0.5)).abs().max() <= COARSE
    assert (torch.tanh(deterministic) / 2).abs().mean() == pytest.approx(0.25, abs=0.02)
    assert 4.5 * stochastic.std() < 0.05 * math.sqrt(COPIES)
    assert abs(stochastic.mean()) < 0.05  # its own bias, u^3 at 0, moves it by 0.0013


# -- option 2 ---------------------------------------------------------------------------------------


def test_all_groups_are_projected_together_and_what_has_no_gradient_is_left_alone() -> None:
    first, second, unused = (nn.Parameter(torch.zeros(2, dtype=torch.bfloat16)) for _ in range(3))
    optimizer = SSVRMV([{"params": [first, unused]}, {"params": [second]}], correction=0.0, **BALL)
    first.grad, second.grad = (
        torch.tensor([24.0, 0.0]).bfloat16(),
        torch.tensor([-32.0, 0.0]).bfloat16(),
    )
    seen = []
    optimizer.observers = (lambda parameter, estimate: seen.append(estimate.clone()),)
    optimizer.counts_clipping = True
    optimizer.step()
    estimates = [optimizer.state[weight]["estimate"] for weight in (first, second)]
    torch.testing.assert_close(estimates[0], torch.tensor([4.8, 0.0]))
    torch.testing.assert_close(estimates[1], torch.tensor([-6.4, 0.0]))
    assert all(torch.equal(a[:1], b[:1]) for a, b in zip(seen, estimates, strict=True))
    assert optimizer.clip_fraction == 0
    assert (first[1], *second[1:], *unused) == (0, 0, 0, 0)
    assert "estimate" not in optimizer.state[unused]


def test_option_2_needs_one_fixed_radius_and_a_random_outcome() -> None:
    weight = nn.Parameter(torch.zeros(1))
    assert isinstance(SSVRMV([weight], **BALL).vote, StochasticVote)
    assert type(SSVRMV([weight]).vote) is MajorityVote
    vote = StochasticVote(seed=3)
    assert SSVRMV([weight], **BALL, vote=vote).vote is vote
    for wrong in (MajorityVote(), LocalVote()):
        with pytest.raises(TypeError, match="vote must be a StochasticVote or None for SSVRMV, got"):
            SSVRMV([weight], **BALL, vote=wrong)
    with pytest.raises(ValueError, match=r"^radius_policy must be \"fixed\" with option=2.* got 'max'"):
        SSVRMV([weight], option=2)
    other = {"params": [nn.Parameter(torch.zeros(1))], "radius": 1.0}
    with pytest.raises(ValueError, match=r"^radius must be the same in all groups .* got 1.0 after 8.0"):
        SSVRMV([{"params": [weight]}, other], **BALL)
    twin = pickle.loads(pickle.dumps(SSVRMV([weight], **BALL)))
    assert (twin.option, twin.vote_class) == (2, StochasticVote)


# -- conventions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["fixed", "running"])
def test_resumes(policy: str, tmp_path: Path) -> None:
    check_resumes(SSVRMV, {"radius": 2.0, "radius_policy": policy}, tmp_path)


def test_resumes_with_option_2(tmp_path: Path) -> None:
    check_resumes(partial(SSVRMV, **BALL), {}, tmp_path)


@pytest.mark.parametrize("policy", ["fixed", "max", "rms", "running"])
def test_what_has_no_gradient_does_not_move(policy: str) -> None:
    check_unused_stay(SSVRMV, {"radius": 1.0, "radius_policy": policy, "correction": 0.0})


def test_what_has_no_gradient_does_not_move_with_option_2() -> None:
    check_unused_stay(SSVRMV, {**BALL, "radius": 1.0, "correction": 0.0})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_learns_with_its_defaults(dtype: torch.dtype) -> None:
    check_learns(SSVRMV, dtype)


def test_clip_fraction() -> None:
    weights = weights_at_zero()
    optimizer = SSVRMV(weights, LR, radius=4.0, radius_policy="fixed")
    steps(weights, optimizer, 0, 3)
    assert optimizer.clip_fraction is None
    optimizer.counts_clipping = True
    assert optimizer.clip_fraction is None
    for step in range(3, 6):
        steps(weights, optimizer, 0, 1, first=step)
        estimates = torch.cat([optimizer.state[weight]["estimate"] for weight in weights])
        assert optimizer.clip_fraction is not None
        assert optimizer.clip_fraction.dim() == 0
        assert optimizer.clip_fraction == (estimates.abs() > 4).float().mean()
    assert copy.deepcopy(optimizer).counts_clipping


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("radius", 0.0, ValueError),
        ("radius", -1.0, ValueError),
        ("radius", float("inf"), ValueError),
        ("radius", float("nan"), ValueError),
        ("radius", "max", TypeError),
        ("radius_policy", "norm", ValueError),
        ("shared_radius", "max", TypeError),
        ("option", 3, ValueError),
        ("option", "2", ValueError),
        ("beta", 0.0, ValueError),
        ("beta", 1.1, ValueError),
        ("correction", 1.5, ValueError),
        ("correction_steps", 0, ValueError),
        ("previous", "lastbatch", ValueError),
        ("lr", -1.0, ValueError),
    ],
)
def test_bad_arguments_are_named(name: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^{name} must be"):
        SSVRMV([nn.Parameter(torch.zeros(1))], **{name: value})  # type: ignore[arg-type]
