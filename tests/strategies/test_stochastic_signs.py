"""Stochastic signs under the strategy: a radius that all workers share, and SSVR-MV's random outcome."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lightning_signvr import SignVoteStrategy
from lightning_signvr.optimizers.ssvrmv import SSVRMV
from lightning_signvr.voting import StochasticVote
from tests.strategies.helpers import LR, Regression, batches, fit, parameters_of, same_on_all
from tests.workers import run_workers

BALL: dict[str, Any] = {"radius": 4.0, "radius_policy": "fixed", "option": 2}
RULES = "(ties='positive', zeros='random', seed=7)"
OPTIMIZERS: dict[str, tuple[Callable[[Any], SSVRMV], str]] = {
    "option 1": (lambda parameters: SSVRMV(parameters, LR), f"MajorityVote{RULES}"),
    "option 2": (lambda parameters: SSVRMV(parameters, LR, **BALL), f"StochasticVote{RULES}"),
    "option 2 with a vote": (
        lambda parameters: SSVRMV(parameters, LR, **BALL, vote=StochasticVote(seed=3)),
        "StochasticVote(ties='random', zeros='abstain', seed=3)",
    ),
}


def _fit(rank: int) -> dict[str, tuple[np.ndarray, str, list[float]]]:
    results = {}
    for name, (make, _) in OPTIMIZERS.items():
        module = Regression(make, seed=rank)
        trainer = fit(module, batches(rank, 6), SignVoteStrategy(ties="positive", zeros="random", seed=7))
        state = trainer.optimizers[0].state
        magnitudes = [float(state[parameter].get("shared_magnitude", 0)) for parameter in module.parameters()]
        results[name] = parameters_of(module), repr(trainer.strategy.votes[0]), magnitudes
    return results


def test_each_option_votes_in_its_way_and_workers_stay_alike() -> None:
    everyones = run_workers(_fit, 2)
    start = parameters_of(Regression(seed=0))
    for name, (_, expected) in OPTIMIZERS.items():
        parameters, votes, magnitudes = zip(*(result[name] for result in everyones), strict=True)
        assert same_on_all(parameters), name
        assert not np.array_equal(parameters[0], start)
        assert votes == (expected, expected)
        assert magnitudes[0] == magnitudes[1]
        assert all((number > 0) == (name == "option 1") for number in magnitudes[0])
