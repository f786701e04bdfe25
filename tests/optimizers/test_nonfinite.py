"""A worker whose gradient has NaN or inf: it abstains, or all leave out the step, or all stop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_signvr.optimizers import (
    SSVR,
    SSVRMV,
    EFSignum,
    SignOptimizer,
    Signum,
    vote_gradients,
)
from lightning_signvr.voting import LocalVote, MajorityVote
from tests.workers import WorkerError, run_workers

NAN, INF = float("nan"), float("inf")
SHAPES = [(40,), (3, 7), (9,)]
STEPS = 6
BAD_STEP, BAD_TENSOR, BAD_RANK = 3, 1, 1


def gradients(rank: int, step: int, is_bad: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 * rank + step)
    result = [torch.randn(shape, generator=generator) for shape in SHAPES]
    if is_bad and rank == BAD_RANK and step == BAD_STEP:
        result[BAD_TENSOR].view(-1)[5] = NAN
    return result


def train(
    rank: int, overlap: bool, bad: str, rules: dict[str, Any]
) -> tuple[list[Tensor], list[Tensor], list[Sequence[int]]]:
    """Parameters, estimates, and who was not finite in each step. ``bad``: "nan", "none" for no gradient."""
    weights = [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    optimizer = Signum(weights, lr=0.5, momentum=0.5, weight_decay=0.1, vote=MajorityVote(**rules))
    if overlap:
        optimizer.overlap()
    seen: list[Sequence[int]] = []
    for step in range(STEPS):
        optimizer.zero_grad()
        own = gradients(rank, step, bad == "nan")
        is_missing = bad == "none" and rank == BAD_RANK and step == BAD_STEP
        used = [index for index in range(len(SHAPES)) if not (is_missing and index == BAD_TENSOR)]
        torch.stack([(weights[index] * own[index]).sum() for index in used]).sum().backward()
        optimizer.step()
        assert optimizer.vote.last is not None
        seen.append(optimizer.vote.last.nonfinite)
    estimates = [optimizer.state[weight]["momentum_buffer"] for weight in weights]
    return [weight.detach() for weight in weights], estimates, seen


def both(rank: int, overlap: bool, rules: dict[str, Any]) -> list[Any]:
    return [train(rank, overlap, bad, rules) for bad in ("nan", "none")]


@pytest.mark.parametrize(
    ("workers", "overlap", "rules"),
    [
        (2, False, {}),
        (3, False, {"topology": "two_phase", "bucket_parameters": 64}),
        (3, True, {"zeros": "random"}),
        (4, False, {"voters": "node", "workers_per_node": 2}),
    ],
)
def test_a_nan_is_as_good_as_no_gradient(workers: int, overlap: bool, rules: dict[str, Any]) -> None:
    results = run_workers(both, workers, overlap, rules)
    for rank, ((weights, estimates, seen), (expected, their_estimates, _)) in enumerate(results):
        assert all(map(torch.equal, weights, expected)), rank
        assert all(map(torch.equal, estimates, their_estimates)), rank
        assert all(map(torch.equal, weights, results[0][0][0]))
        assert [list(ranks) for ranks in seen] == [
            [BAD_RANK] if step == BAD_STEP else [] for step in range(STEPS)
        ]


def skipping(rank: int, make: str) -> tuple[list[Tensor], int]:
    """The bad step is left out: the end is that of a run without it."""
    ends = []
    for is_bad in (True, False):
        weights = [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
        vote = MajorityVote(nonfinite="skip", ties="positive")
        optimizer: Any
        if make == "Signum":
            optimizer = Signum(weights, lr=0.5, vote=vote)
        else:
            optimizer = torch.optim.SGD(weights, lr=0.5, momentum=0.5, weight_decay=0.1)
            vote_gradients(optimizer, vote)
        for step in range(STEPS):
            if step == BAD_STEP and not is_bad:
                continue
            for weight, gradient in zip(weights, gradients(rank, step, is_bad), strict=True):
                weight.grad = gradient
            optimizer.step()
        ends.append([weight.detach() for weight in weights])
    assert all(map(torch.equal, *ends))
    return ends[0], vote.step


@pytest.mark.parametrize("make", ["Signum", "SGD"])
def test_skip_leaves_out_the_step_on_all_workers(make: str) -> None:
    results = run_workers(skipping, 3, make)
    for weights, votes in results:
        assert all(map(torch.equal, weights, results[0][0]))
        assert votes == STEPS - 1


def raising(rank: int) -> tuple[str, bool]:
    weights = [nn.Parameter(torch.ones(shape)) for shape in SHAPES]
    optimizer = Signum(weights, lr=0.5, vote=MajorityVote(nonfinite="raise"))
    for step in range(BAD_STEP + 1):
        before = [weight.detach().clone() for weight in weights]
        for weight, gradient in zip(weights, gradients(rank, step, True), strict=True):
            weight.grad = gradient
        try:
            optimizer.step()
        except RuntimeError as error:
            return str(error), all(map(torch.equal, weights, before))
    return "", False


def test_raise_names_the_rank_on_all_workers_and_changes_nothing() -> None:
    for message, is_unchanged in run_workers(raising, 2):
        assert message.startswith(f"rank {BAD_RANK}: NaN or inf in the gradients of step {BAD_STEP}")
        assert is_unchanged


def always_nan(rank: int, rules: dict[str, Any], nodes: bool) -> tuple[int, str, list[str]]:
    """Steps until the error, the error, and what was logged."""
    lines: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logging.getLogger("lightning_signvr.voting.nonfinite").addHandler(Listener())
    if nodes:
        rules = {**rules, "voters": "node", "workers_per_node": 2}
    weight = nn.Parameter(torch.zeros(9))
    optimizer = Signum([weight], vote=MajorityVote(nonfinite_limit=4, **rules))
    for step in range(99):
        is_bad = rank == 2 and (step == 1 or step >= 5)
        weight.grad = torch.full((9,), NAN if is_bad else 1.0)
        try:
            optimizer.step()
        except RuntimeError as error:
            return step, str(error), lines
    return 99, "", lines


@pytest.mark.parametrize(
    ("rules", "nodes", "ends_at"), [({}, False, 9), ({"nonfinite": "skip"}, False, 8), ({}, True, 9)]
)
def test_a_worker_that_never_recovers_is_an_error_on_all(
    rules: dict[str, Any], nodes: bool, ends_at: int
) -> None:
    results = run_workers(always_nan, 4, rules, nodes)
    for step, message, _ in results:
        assert step == ends_at
        assert message.startswith("rank 2 had NaN or inf in its gradients in 4 steps in a row")
    consequence = "all workers leave out the step" if rules else "it does not vote on those tensors"
    logged = results[0][2]
    assert [line.split(" in its")[0].split(" in step")[0] for line in logged] == [
        "rank 2 has NaN or inf",
        "rank 2 has finite gradients again",
        "rank 2 has NaN or inf",
    ]
    assert logged[0].endswith(consequence)
    assert not results[1][2]


MAKERS: dict[str, Callable[[list[nn.Parameter]], SignOptimizer]] = {
    "Signum": lambda weights: Signum(weights, lr=0.5),
    "SSVR": lambda weights: SSVR(weights, lr=0.5),
    "SSVRMV": lambda weights: SSVRMV(weights, lr=0.5, radius=8.0, radius_policy="fixed", option=2),
    "EFSignum": lambda weights: EFSignum(weights, lr=0.5),
    "LocalVote": lambda weights: Signum(weights, lr=0.5, vote=LocalVote()),
}


@pytest.mark.parametrize("place", ["here", "at the previous iterate"])
@pytest.mark.parametrize("number", [NAN, INF, -INF])
@pytest.mark.parametrize("name", MAKERS)
def test_a_lone_worker_keeps_its_estimates_and_leaves_the_parameter(
    name: str, number: float, place: str
) -> None:
    good, bad = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    optimizer = MAKERS[name]([good, bad])

    def step(factor: float, at_previous: float) -> None:
        optimizer.zero_grad()
        (good.sum() + factor * bad.sum()).backward()
        if isinstance(optimizer, (SSVR, SSVRMV)):
            with optimizer.at_previous_iterate():
                (good.sum() + at_previous * bad.sum()).backward()
        optimizer.step()

    step(1.0, 1.0)
    before = (
        bad.detach().clone(),
        {key: value.clone() for key, value in optimizer.state[bad].items() if isinstance(value, Tensor)},
    )
    moved = good.detach().clone()
    if place == "here":
        step(number, 1.0)
    elif isinstance(optimizer, (SSVR, SSVRMV)):
        step(1.0, number)
    else:
        return
    assert torch.equal(bad, before[0])
    assert not torch.equal(good, moved)
    for key, value in before[1].items():
        if key != "previous_iterate":
            assert torch.equal(optimizer.state[bad][key], value), key
    assert optimizer.vote.last is not None
    assert list(optimizer.vote.last.nonfinite) == [0]


def test_finite_numbers_whose_sum_is_not_finite_take_part() -> None:
    weight = nn.Parameter(torch.zeros(4))
    weight.grad = torch.full((4,), 3e38)
    Signum([weight], lr=1.0).step()
    assert weight.tolist() == [-1.0] * 4


def test_overlap_needs_abstentions() -> None:
    optimizer = Signum([nn.Parameter(torch.zeros(2))], vote=MajorityVote(nonfinite="skip"))
    with pytest.raises(ValueError, match='nonfinite="skip" looks at all gradients'):
        optimizer.overlap()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"nonfinite": "ignore"}, ValueError, "nonfinite must be one of 'abstain', 'skip', 'raise'"),
        ({"nonfinite_limit": 0}, ValueError, "nonfinite_limit must be at least 1, got 0"),
        ({"nonfinite_limit": 1.5}, TypeError, "nonfinite_limit must be an int or None, got 1.5"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MajorityVote(**arguments)


def other_rules(rank: int, rules: tuple[dict[str, Any], dict[str, Any]], foreign: bool) -> None:
    weight = nn.Parameter(torch.ones(3))
    vote = MajorityVote(**rules[rank])
    optimizer: Any = torch.optim.SGD([weight], lr=0.1) if foreign else Signum([weight], vote=vote)
    if foreign:
        vote_gradients(optimizer, vote)
    weight.grad = torch.ones(3)
    optimizer.step()


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize(
    "rules",
    [
        ({"nonfinite": "abstain"}, {"nonfinite": "skip"}),
        ({"nonfinite": "skip"}, {"nonfinite": "raise"}),
        ({"nonfinite": "skip"}, {"nonfinite": "skip", "verify": True}),
        ({"nonfinite_limit": 3}, {}),
    ],
)
def test_all_ranks_have_the_same_rules(rules: tuple[dict[str, Any], dict[str, Any]], foreign: bool) -> None:
    with pytest.raises(WorkerError) as error:
        run_workers(other_rules, 2, rules, foreign)
    assert str(error.value).count("RuntimeError: the ranks do not vote on the same tensors by the same") == 2
