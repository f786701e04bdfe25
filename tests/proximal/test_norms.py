from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings

from lightning_signvr.proximal import L1, Box, ElasticNet, SquaredL2
from tests.proximal.inputs import STEPS, residual, tensors


def check_l1_subgradient(point, slope, strength):
    """``slope`` is in ``strength * d|.|`` at ``point``."""
    zero = point == 0
    assert (slope[zero].abs() <= strength + 1e-9).all()
    torch.testing.assert_close(slope[~zero], strength * point[~zero].sign(), rtol=1e-9, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(tensors(6), STEPS)
def test_l1_optimality(x, step):
    check_l1_subgradient(*residual(L1(0.7), x, step), 0.7)


@settings(max_examples=50, deadline=None)
@given(tensors(6), STEPS)
def test_squared_l2_optimality(x, step):
    point, slope = residual(SquaredL2(0.7), x, step)
    torch.testing.assert_close(slope, 0.7 * point, rtol=1e-9, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(tensors(6), STEPS)
def test_elastic_net_optimality(x, step):
    point, slope = residual(ElasticNet(0.7, 0.4), x, step)
    check_l1_subgradient(point, slope - 0.4 * point, 0.7)


def test_l1_makes_exact_zeros():
    x = torch.tensor([0.5, -0.5, 0.25, -0.0, 0.0, 0.501])
    assert (L1(1.0).prox(x, 0.5) == 0).tolist() == [True] * 5 + [False]


def test_infinite_elements_stay():
    x = torch.tensor([math.inf, -math.inf])
    assert torch.equal(L1(1.0).prox(x, 0.5), x)


@settings(max_examples=30, deadline=None)
@given(tensors(6), STEPS)
def test_moreau_identity_of_l1(x, step):
    conjugate = Box(-0.7, 0.7)  # its indicator is the conjugate of 0.7 * |.|
    torch.testing.assert_close(L1(0.7).prox(x, step) + step * conjugate.prox(x / step, 1 / step), x)


@settings(max_examples=30, deadline=None)
@given(tensors(6), STEPS)
def test_moreau_identity_of_squared_l2(x, step):
    conjugate = SquaredL2(1 / 0.7)
    torch.testing.assert_close(SquaredL2(0.7).prox(x, step) + step * conjugate.prox(x / step, 1 / step), x)


@settings(max_examples=30, deadline=None)
@given(tensors(6), STEPS)
def test_elastic_net_has_both_as_its_ends(x, step):
    torch.testing.assert_close(ElasticNet(0.7, 0).prox(x, step), L1(0.7).prox(x, step))
    torch.testing.assert_close(ElasticNet(0, 0.7).prox(x, step), SquaredL2(0.7).prox(x, step))


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_bad_strengths_of_the_elastic_net_are_named(name):
    good = {"l1": 1.0, "l2": 1.0}
    with pytest.raises(ValueError, match=f"^{name} must be a finite number >= 0, got -2.0"):
        ElasticNet(**good | {name: -2.0})
    with pytest.raises(TypeError, match=f"^{name} must be a number, got '1'"):
        ElasticNet(**good | {name: "1"})
