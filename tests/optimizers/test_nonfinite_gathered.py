"""NaN in a pass over many batches: refused, named, and nothing of it kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lightning_signvr.optimizers import (
    DVRQ,
    DVRQFS,
    SSVR,
    SSVRFS,
    SSVRMV,
    DVRSign,
    DVRSignFS,
    SignRVM,
    SignRVR,
    SignSVRG,
)

SNAPSHOTS = [SignSVRG, SignRVR, SignRVM, SSVRFS, DVRSignFS, DVRQFS]
FIRST_BATCHES = [SSVR, SSVRMV, DVRSign, DVRQ]
LARGEST = torch.finfo(torch.float32).max


def make(kind: Callable[..., Any]) -> tuple[Any, list[nn.Parameter]]:
    weights = [nn.Parameter(torch.zeros(shape)) for shape in ((3,), (2, 2), (4,))]
    return kind([{"params": weights[:1]}, {"params": weights[1:]}], lr=0.1), weights


def gather(optimizer: Any, weights: list[nn.Parameter], number: float) -> None:
    """``number`` is one coordinate of the last parameter's gradient."""
    block = "take_snapshot" if hasattr(optimizer, "take_snapshot") else "large_first_batch"
    with getattr(optimizer, block)():
        for weight in weights:
            weight.grad = torch.full_like(weight, LARGEST)  # finite, but not their sum
        weights[-1].grad[2] = number  # type: ignore[index]


def everything(optimizer: Any) -> Any:
    return copy.deepcopy([dict(optimizer.state), optimizer.param_groups])


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
@pytest.mark.parametrize("kind", SNAPSHOTS + FIRST_BATCHES, ids=lambda kind: kind.__name__)
def test_nothing_that_is_not_finite_is_kept(kind: Callable[..., Any], number: float) -> None:
    optimizer, weights = make(kind)
    for number_after in range(2 if kind in SNAPSHOTS else 1):  # without a snapshot, then with one
        own = [weight.grad for weight in weights]
        before = everything(optimizer)
        with pytest.raises(RuntimeError, match=r"parameter 1 of group 1, of shape \(4,\), has NaN or inf"):
            gather(optimizer, weights, number)
        assert str(everything(optimizer)) == str(before)
        assert all(weight.grad is mine for weight, mine in zip(weights, own, strict=True))
        gather(optimizer, weights, number_after)
        assert str(everything(optimizer)) != str(before)
