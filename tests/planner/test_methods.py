"""The table of methods, against the optimizers themselves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_signvr import optimizers
from lightning_signvr.optimizers import SignOptimizer, SnapshotOptimizer
from lightning_signvr.planner import METHODS, Cluster, Link, Problem, predict
from lightning_signvr.planner.methods import TORCH_STATE
from tests.workers import run_workers

SIZES = [(64, 15), (64,)]  # shards of 1 and 2 workers have no padding
PARAMETERS = 64 * 16


def _steps(make: Callable[..., torch.optim.Optimizer]) -> tuple[torch.optim.Optimizer, int, int]:
    """An optimizer after some steps; gradients that the last one evaluated and bytes that it sent."""
    parameters = [nn.Parameter(torch.zeros(size)) for size in SIZES]
    optimizer = make(parameters)
    evaluations, sent = 0, [0]

    def closure() -> float:
        nonlocal evaluations
        evaluations += 1
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        return 0.0

    if isinstance(optimizer, SnapshotOptimizer):
        with optimizer.take_snapshot():
            closure()
    for _ in range(4):
        evaluations = 0
        optimizer.step(closure)
        if isinstance(optimizer, SignOptimizer):
            sent.append(optimizer.vote.traffic.bytes_sent)
    return optimizer, evaluations, sent[-1] - sent[-2] if len(sent) > 1 else 0


def _numbers_kept(optimizer: torch.optim.Optimizer) -> int:
    """Numbers of state, but for those of a whole tensor, such as a step or a radius."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.numel() for value in values if isinstance(value, Tensor) and value.dim() > 0)


def _found(rank: int, names: list[str]) -> dict[str, tuple[int, int, int]]:
    """Bytes of state, gradients per step and bytes sent per step of optimizers, by name."""
    torch.manual_seed(rank)
    found = {}
    for name in names:
        optimizer, evaluations, sent = _steps(getattr(optimizers, name))
        found[name] = (4 * _numbers_kept(optimizer), evaluations, sent)
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_state_gradients_and_bytes_are_those_of_the_table(workers: int) -> None:
    cluster = Cluster(workers, Link(1e6, 0.0))
    expected = {
        name: (
            method.state_bytes(PARAMETERS, workers),
            method.gradients,
            predict(Problem(SIZES, cluster, 1.0, method))["vote"].bytes_sent,
        )
        for name, method in METHODS.items()
    }
    for found in run_workers(_found, workers, list(METHODS)):
        differences = {
            name: (found[name], expected[name]) for name in METHODS if found[name] != expected[name]
        }
        assert not differences


def test_the_table_is_complete() -> None:
    bases = {name for name in optimizers.__all__ if name.endswith("Optimizer")}
    assert set(optimizers.__all__) - bases - {"clip_grad_norm_", "vote_gradients"} == set(METHODS)


def test_state_of_torch_s_optimizers() -> None:
    makers = {
        "SGD": torch.optim.SGD,
        "SGD(momentum=0.9)": lambda parameters: torch.optim.SGD(parameters, momentum=0.9),
        "AdamW": torch.optim.AdamW,
    }
    assert set(makers) == set(TORCH_STATE)
    for name, make in makers.items():
        assert _numbers_kept(_steps(make)[0]) == TORCH_STATE[name] * PARAMETERS
