from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_signvr.proximal import L1, NuclearNorm
from tests.proximal.inputs import STEPS, normal, residual, tensors


@settings(max_examples=50, deadline=None)
@given(st.one_of(tensors(3, 4), tensors(4, 2), tensors(1, 3), tensors(3, 3)), STEPS)
def test_optimality(x, step):
    # the subgradients at p: spectral norm at most the strength, and <slope, p> = strength * ||p||_*
    point, slope = residual(NuclearNorm(0.7), x, step)
    assert torch.linalg.matrix_norm(slope, 2) <= 0.7 + 1e-9
    nuclear = torch.linalg.svdvals(point).sum()
    torch.testing.assert_close((slope * point).sum(), 0.7 * nuclear, rtol=1e-8, atol=1e-8)


def test_rank_falls():
    x = normal(6, 2) @ normal(2, 5, seed=1) + 0.01 * normal(6, 5, seed=2)
    assert torch.linalg.matrix_rank(x) == 5
    assert torch.linalg.matrix_rank(NuclearNorm(1.0).prox(x, 0.1)) == 2


@settings(max_examples=20, deadline=None)
@given(tensors(4), STEPS)
def test_diagonal_matrices_are_l1(diagonal, step):
    point = NuclearNorm(0.7).prox(torch.diag(diagonal), step)
    torch.testing.assert_close(point, torch.diag(L1(0.7).prox(diagonal, step)), rtol=1e-9, atol=1e-9)


def test_leading_dimensions_are_a_batch():
    x = normal(2, 3, 4, 5)
    matrices = x.flatten(0, 1)
    regularizer = NuclearNorm(0.7)
    torch.testing.assert_close(regularizer.value(x), sum(map(regularizer.value, matrices)))
    expected = torch.stack([regularizer.prox(matrix, 0.5) for matrix in matrices]).view_as(x)
    torch.testing.assert_close(regularizer.prox(x, 0.5), expected)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_matrices_that_are_not_finite_do_not_touch_others(broken):
    x = normal(2, 3, 3)
    expected = NuclearNorm(0.7).prox(x[1], 0.5)
    x[0, 1, 2] = broken
    point = NuclearNorm(0.7).prox(x, 0.5)
    assert point[0].isnan().all()
    torch.testing.assert_close(point[1], expected)
    assert NuclearNorm(0.7).value(x).isnan()


def test_autocast_does_not_lower_the_precision():
    x = normal(8, 8).float()
    expected = NuclearNorm(0.7).prox(x, 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(NuclearNorm(0.7).prox(x, 0.5), expected)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_vectors_are_refused(shape):
    for call in (NuclearNorm(1.0).value, lambda x: NuclearNorm(1.0).prox(x, 1.0)):
        with pytest.raises(
            ValueError, match=r"NuclearNorm needs x of shape \[\.\.\., rows, columns\], got .*reshape"
        ):
            call(torch.zeros(shape))
