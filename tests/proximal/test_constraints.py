from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_signvr.proximal import Box, NonNegative
from tests.proximal.inputs import DTYPES, STEPS, normal, residual, tensors


@settings(max_examples=50, deadline=None)
@given(tensors(6), STEPS)
def test_box_residual_is_in_the_normal_cone(x, step):
    point, normal_vector = residual(Box(-1.0, 2.0), x, step)
    assert ((point >= -1) & (point <= 2)).all()
    assert (normal_vector[point > -1] >= 0).all()
    assert (normal_vector[point < 2] <= 0).all()


@settings(max_examples=50, deadline=None)
@given(tensors(6), STEPS)
def test_non_negative_residual_is_in_the_normal_cone(x, step):
    point, normal_vector = residual(NonNegative(), x, step)
    assert (point >= 0).all()
    assert (normal_vector <= 0).all()
    assert (normal_vector * point == 0).all()


@settings(max_examples=30, deadline=None)
@given(tensors(6), STEPS)
def test_moreau_identity_of_a_cone(x, step):
    # the polar cone of the non-negative numbers are the others
    torch.testing.assert_close(NonNegative().prox(x, step) + Box(-math.inf, 0).prox(x, step), x)
    assert torch.equal(NonNegative().prox(x, step), Box(0, math.inf).prox(x, step))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=30, deadline=None)
@given(bounds=st.lists(st.floats(-1000, 1000), min_size=2, max_size=2).map(sorted))
def test_the_projection_lies_inside_in_every_dtype(dtype, bounds):
    box = Box(*bounds)
    x = normal(8, scale=1000.0).to(dtype)
    point = box.prox(x, 1.0)
    assert box.value(point) == 0
    assert box.value(point[0]) == 0
    assert torch.equal(box.prox(point, 0.1), point)


def test_value_outside():
    inside = torch.tensor([-1.0, 0.5, 2.0])
    assert Box(-1, 2).value(inside) == 0
    for box in (Box(-0.9, 2), Box(-1, 1.9), Box(0, math.inf), Box(-math.inf, 0)):
        assert box.value(inside) == math.inf
    assert NonNegative().value(inside) == math.inf
    assert NonNegative().value(inside.abs()) == 0
    assert NonNegative().value(torch.tensor([-0.0, 0.0])) == 0
    for each in (Box(-1, 2), NonNegative()):
        assert each.value(torch.tensor([0.5, math.nan])) == math.inf


def test_box_of_one_point():
    assert torch.equal(Box(3, 3).prox(torch.tensor([1.0, 9.0]), 1.0), torch.full((2,), 3.0))


@pytest.mark.parametrize(
    ("lower", "upper"),
    [(2, 1), (math.nan, 1), (0, math.nan), (math.inf, math.inf), (-math.inf, -math.inf), (math.inf, 0)],
)
def test_bounds_without_a_number_between_them(lower, upper):
    with pytest.raises(
        ValueError, match=rf"lower must be .*<= upper, got lower={lower} and upper={upper}: swap"
    ):
        Box(lower, upper)


def test_bounds_that_are_no_numbers():
    with pytest.raises(TypeError, match="lower must be a number, got None"):
        Box(None, 1)
    with pytest.raises(TypeError, match="upper must be a number, got True"):
        Box(0, True)
