"""A fit under the strategy is the method's formula over all workers' gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from tests.strategies.helpers import (
    LR,
    MOMENTUM,
    Regression,
    batches,
    fit,
    parameters_of,
    same_on_all,
    signum_without_coins,
)
from tests.workers import run_workers

STEPS = 50
CASES = [(1, None), (1, 0.5), (3, 0.5)]
"""accumulate_grad_batches and gradient_clip_val, each of which changes the result."""


def _fit_all_cases(rank: int) -> list[np.ndarray]:
    results = []
    for accumulate, clip in CASES:
        module = Regression(signum_without_coins, seed=rank)  # rank 0's weights must reach everyone
        trainer = fit(
            module,
            batches(rank, STEPS * accumulate),
            accumulate_grad_batches=accumulate,
            gradient_clip_val=clip,
        )
        assert trainer.global_step == STEPS
        results.append(parameters_of(module))
    return results


def _simulate(workers: int, accumulate: int, clip: float | None) -> np.ndarray:
    """Signum by majority vote in one process: plain autograd over each worker's batches in turn."""
    module = Regression(seed=0)
    parameters = list(module.parameters())
    averages = [[torch.zeros_like(p) for p in parameters] for _ in range(workers)]
    data = [batches(rank, STEPS * accumulate) for rank in range(workers)]
    for step in range(STEPS):
        for average, own in zip(averages, data, strict=True):
            module.zero_grad()
            for batch in own[step * accumulate : (step + 1) * accumulate]:
                (module.training_step(batch, 0) / accumulate).backward()
            if clip is not None:
                clip_grad_norm_(parameters, clip)
            for m, parameter in zip(average, parameters, strict=True):
                m.mul_(MOMENTUM).add_(parameter.grad, alpha=1 - MOMENTUM)
        with torch.no_grad():
            for index, parameter in enumerate(parameters):
                tally = sum(average[index].sign() for average in averages)
                parameter.sub_(torch.where(tally >= 0, 1.0, -1.0), alpha=LR)
    return parameters_of(module)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_fit_equals_the_formula_computed_in_one_process(workers: int) -> None:
    results = run_workers(_fit_all_cases, workers)
    expected = [_simulate(workers, *case) for case in CASES]
    assert len({values.tobytes() for values in expected}) == len(CASES)
    for rank, result in enumerate(results):
        for case, values, formula in zip(CASES, result, expected, strict=True):
            np.testing.assert_array_equal(
                values, formula, err_msg=f"rank {rank}, (accumulate, clip) = {case}"
            )
    assert all(same_on_all(case) for case in zip(*results, strict=True))
