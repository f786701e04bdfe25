"""States of some workers, gathered, and what another number of workers starts with."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_signvr.optimizers import DVRSign
from lightning_signvr.optimizers.rank_states import own_rank_state, resized, with_rank_states
from lightning_signvr.optimizers.resizing import merged
from tests.workers import run_workers

SHAPES, LR, BETA = [(70,), (5, 9), (301,)], 0.5, 0.25
CPU = torch.device("cpu")


def step(optimizer: DVRSign, weights: list[nn.Parameter], seed: int | None) -> None:
    def closure() -> None:
        generator = torch.Generator().manual_seed(seed or 0)
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator) * (seed is not None)

    optimizer.step(closure)


def make() -> tuple[DVRSign, list[nn.Parameter]]:
    weights = [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    return DVRSign(weights, lr=LR, beta=BETA), weights


def save(rank: int) -> Any:
    optimizer, weights = make()
    for number in range(3):
        step(optimizer, weights, 10 * rank + number)
    gathered = with_rank_states(optimizer.state_dict(), CPU)
    return copy.deepcopy(gathered), [weight.detach() for weight in weights]


def go_on(rank: int, saved: Any, weights: list[Tensor]) -> list[Tensor]:
    """One step without gradients: the owners' estimates decide alone."""
    optimizer, moved = make()
    with torch.no_grad():
        for parameter, weight in zip(moved, weights, strict=True):
            parameter.copy_(weight)
    optimizer.load_state_dict(resized(saved, dist.get_world_size(), "mean"))
    step(optimizer, moved, None)
    return [weight.detach() for weight in moved]


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2), (4, 1), (1, 4)])
def test_the_owners_estimates_are_cut_anew(before: int, after: int) -> None:
    saved, weights = run_workers(save, before)[0]
    whole = torch.cat([state["owner"]["estimate"] for state in saved["rank_states"]["states"]])
    expected, start = [], 0
    for weight in weights:  # each tensor starts on a byte of signs
        estimate = whole[start : start + weight.numel()].view_as(weight)
        expected.append(weight - LR * estimate.sign())
        start += -(-weight.numel() // 8) * 8
    for moved in run_workers(go_on, after, saved, weights):
        assert all(map(torch.equal, moved, expected))


def test_the_mean_of_what_has_one() -> None:
    odd, even = torch.tensor([1, 3], dtype=torch.bfloat16), torch.tensor([2, 4], dtype=torch.bfloat16)
    same = torch.rand(100)
    first = {0: {"a": odd, "same": same, "votes": torch.tensor([5])}, 1: {"count": 1, "a": odd}}
    second = {
        0: {"a": even, "same": same, "votes": torch.tensor([5])},
        1: {"count": 2, "a": odd},
        2: {"a": odd},
    }
    third = {0: {"a": odd, "same": same}}
    state = merged([first, second, third])
    assert list(state) == [0, 2]  # the counts differ
    assert state[0]["a"].dtype == torch.bfloat16
    assert torch.equal(state[0]["a"], ((odd + even + odd).double() / 3).bfloat16())
    assert torch.equal(state[0]["same"], same)
    assert torch.equal(state[0]["votes"], torch.tensor([5]))
    assert torch.equal(state[2]["a"], odd)


def exchange(rank: int) -> Any:
    mixed = {
        0: {
            "bfloat16": torch.randn(3, 4).bfloat16() + rank,
            "transposed": torch.arange(6.0).view(2, 3).t() * (rank + 1),
            "packed": torch.arange(7, dtype=torch.uint8) + rank,
            "empty": torch.empty(0, 3),
            "scalar": torch.tensor(rank),
            "number": 0.1 * rank,
        }
    }
    everyone = with_rank_states({"state": mixed, "param_groups": []}, CPU)
    return mixed, copy.deepcopy(everyone)


def test_dtypes_shapes_and_values_survive() -> None:
    results = run_workers(exchange, 3)
    gathered = results[0][1]
    for rank, (own, _) in enumerate(results):
        found = own_rank_state(gathered, rank, 3)["state"][0]
        assert list(found) == list(own[0])
        for name, value in own[0].items():
            if isinstance(value, Tensor):
                assert found[name].dtype == value.dtype
                assert found[name].stride() == value.stride()
                assert torch.equal(found[name], value)
            else:
                assert found[name] == value


def test_a_lone_workers_state_is_not_given_to_several() -> None:
    optimizer, _ = make()
    saved = with_rank_states(optimizer.state_dict(), CPU)
    with pytest.raises(RuntimeError, match=r"states of 1 worker\(s\), and this run has 2"):
        own_rank_state(saved, 0, 2)
