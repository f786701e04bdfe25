from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_signvr.proximal import L1, GroupL21
from tests.proximal.inputs import STEPS, normal, residual, tensors


@settings(max_examples=60, deadline=None)
@given(tensors(3, 2, 2), STEPS, st.integers(-3, 2))
def test_optimality(x, step, dim):
    point, slope = residual(GroupL21(0.7, dim), x, step)
    for group, slope_of_group in zip(point.unbind(dim), slope.unbind(dim), strict=True):
        if (group == 0).all():
            assert slope_of_group.norm() <= 0.7 + 1e-9
        else:
            torch.testing.assert_close(slope_of_group, 0.7 * group / group.norm(), rtol=1e-7, atol=1e-8)


@settings(max_examples=30, deadline=None)
@given(tensors(5), STEPS)
def test_groups_of_one_element_are_l1(x, step):
    torch.testing.assert_close(GroupL21(0.7).prox(x, step), L1(0.7).prox(x, step))
    torch.testing.assert_close(GroupL21(0.7).value(x), L1(0.7).value(x))


def test_weak_groups_vanish_as_a_whole():
    weight = normal(4, 3, 2, 2)
    weight[:, 1] *= 0.01
    point = GroupL21(1.0, dim=1).prox(weight, 0.5)
    assert (point != 0).flatten(2).all(2).all(0).tolist() == [True, False, True]
    assert (point[:, 1] == 0).all()


def test_groups_that_are_not_finite_do_not_touch_others():
    x = torch.tensor([[math.nan, 1.0], [math.inf, 1.0], [3.0, 4.0]])
    point = GroupL21(1.0).prox(x, 2.5)
    assert point[0].isnan().all()
    assert torch.equal(point[1:], torch.tensor([[math.inf, 1.0], [1.5, 2.0]]))


@pytest.mark.parametrize(("dim", "shape"), [(2, (3, 4)), (-3, (3, 4)), (0, ()), (1, (5,))])
def test_dim_out_of_range(dim, shape):
    regularizer = GroupL21(1.0, dim)
    for call in (regularizer.value, lambda x: regularizer.prox(x, 1.0)):
        with pytest.raises(
            ValueError, match=rf"dim={dim} is out of range for x of shape .*choose a dimension"
        ):
            call(torch.zeros(shape))


@pytest.mark.parametrize("dim", [1.0, None, True, (0, 1)])
def test_dim_that_is_no_int(dim):
    with pytest.raises(TypeError, match="dim must be an int, got"):
        GroupL21(1.0, dim)
