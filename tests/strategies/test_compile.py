"""Models compiled by torch."""

from __future__ import annotations

import numpy as np
import torch
from torch._dynamo.utils import counters

from tests.strategies.helpers import Regression, batches, fit, parameters_of, same_on_all
from tests.workers import run_workers

STEPS = 6


def _compile_inner(module: Regression) -> Regression:
    module.net = torch.compile(module.net, backend="aot_eager")  # type: ignore[assignment]
    return module


def _compile_all(module: Regression) -> Regression:
    return torch.compile(module, backend="aot_eager")  # type: ignore[return-value]


CASES = {"eager": lambda module: module, "inner module": _compile_inner, "LightningModule": _compile_all}


def _fit_all(rank: int) -> dict[str, tuple[np.ndarray, int]]:
    results = {}
    for case, change in CASES.items():
        counters.clear()
        module = Regression(seed=rank)
        fit(change(module), batches(rank, STEPS))
        results[case] = parameters_of(module), counters["frames"]["ok"]
    return results


def test_a_compiled_model_trains_as_an_eager_one() -> None:
    results = run_workers(_fit_all, 2)
    expected, _ = results[0]["eager"]
    for case in CASES:
        parameters, compiled_frames = zip(*(own[case] for own in results), strict=True)
        assert same_on_all(parameters), case
        np.testing.assert_allclose(parameters[0], expected, rtol=1e-6, err_msg=case)
        assert all((frames > 0) == (case != "eager") for frames in compiled_frames), case
