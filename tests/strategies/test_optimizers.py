"""Several optimizers, optimizers of other makers, learning-rate schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import StepLR

from lightning_signvr import Signum
from tests.strategies.helpers import (
    LR,
    Adversarial,
    Batch,
    LogLines,
    Regression,
    batches,
    fit,
    float16,
    parameters_of,
    same_on_all,
)
from tests.workers import run_workers

STEPS = 8


def _fit_adversarial(rank: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    module = Adversarial(seed=rank)
    trainer = fit(module, batches(rank, STEPS))
    return (
        parameters_of(module.critic),
        parameters_of(module.net),
        [vote.step for vote in trainer.strategy.votes],
    )


def test_two_optimizers_under_manual_optimization() -> None:
    critics, generators, steps = zip(*run_workers(_fit_adversarial, 2), strict=True)
    assert same_on_all(critics)
    assert same_on_all(generators)
    start = Adversarial(seed=0)
    assert not np.array_equal(critics[0], parameters_of(start.critic))
    assert not np.array_equal(generators[0], parameters_of(start.net))
    assert steps[0] == steps[1] == [STEPS, STEPS // 2]


FOREIGN: dict[str, Callable[[Any], Optimizer]] = {
    "AdamW": lambda parameters: AdamW(parameters, lr=LR),
    "SGD": lambda parameters: SGD(parameters, lr=LR, momentum=0.9),
}


def _fit_with_foreign_optimizers(rank: int) -> dict[str, tuple[np.ndarray, set[float], list[str]]]:
    results = {}
    for name, make in FOREIGN.items():
        stepped_on: set[float] = set()

        def watched(parameters: Any, make: Any = make, values: set[float] = stepped_on) -> Optimizer:
            optimizer = make(parameters)
            optimizer.register_step_post_hook(
                lambda optimizer, *_: values.update(
                    value
                    for group in optimizer.param_groups
                    for parameter in group["params"]
                    for value in parameter.grad.unique().tolist()
                )
            )
            return optimizer

        log = LogLines()
        module = Regression(watched, seed=rank)
        fit(module, batches(rank, STEPS))
        results[name] = parameters_of(module), stepped_on, [line for line in log.lines if name in line]
    return results


@pytest.fixture(scope="module")
def foreign() -> list[dict[str, tuple[np.ndarray, set[float], list[str]]]]:
    return run_workers(_fit_with_foreign_optimizers, 2)


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_optimizer_steps_on_voted_signs(name: str, foreign: list[Any]) -> None:
    parameters, values, _ = zip(*(own[name] for own in foreign), strict=True)
    assert same_on_all(parameters)
    for own in values:
        assert {-1.0, 1.0} <= own <= {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_optimizer_is_mentioned_once(name: str, foreign: list[Any]) -> None:
    first, second = ([line for line in own[name][2] if "majority sign" in line] for own in foreign)
    assert len(first) == 1
    assert second == []


def _refuse(rank: int) -> None:
    with pytest.raises(TypeError, match=r"LBFGS.*use another optimizer"):
        fit(Regression(lambda parameters: LBFGS(parameters)), batches(rank, 1))
    with pytest.raises(ValueError, match="fused=False"):
        fit(Regression(lambda parameters: AdamW(parameters, fused=True)), batches(rank, 1), **float16())


def test_optimizers_that_cannot_follow_a_vote_are_refused() -> None:
    run_workers(_refuse, 2)


def _fit_again_with_the_same_optimizer(rank: int) -> tuple[list[int], set[float]]:
    module = Regression()
    optimizer = SGD(module.parameters(), lr=LR)
    module.optimizer = lambda _: optimizer
    votes = [fit(module, batches(rank, STEPS)).strategy.votes[0].step for _ in range(2)]
    module.training_step(batches(rank, 1)[0], 0).backward()
    optimizer.step()  # after the fit it is the user's own again
    return votes, set(next(module.parameters()).grad.unique().tolist())


def test_an_optimizer_votes_once_per_step_and_only_during_fit() -> None:
    for votes, gradients in run_workers(_fit_again_with_the_same_optimizer, 2):
        assert votes == [STEPS, STEPS]
        assert not gradients <= {-1.0, 0.0, 1.0}


class _Slope(Regression):
    """One weight, whose gradient is 1 on every worker."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 1, bias=False).double()
        nn.init.zeros_(self.net.weight)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.net.weight.sum()

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = Signum(self.parameters(), lr=1.0)
        schedule = StepLR(optimizer, step_size=2, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _fit_slope(rank: int) -> float:
    module = _Slope()
    fit(module, batches(rank, 6))
    return module.net.weight.item()


def test_learning_rate_schedules_are_followed() -> None:
    assert run_workers(_fit_slope, 2) == [-(1 + 1 + 0.5 + 0.5 + 0.25 + 0.25)] * 2
