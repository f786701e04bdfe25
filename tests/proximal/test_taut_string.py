from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_signvr.proximal.taut_string import denoise
from tests.proximal.inputs import ELEMENTS


def check_optimality(y, radius, tolerance):
    """The running sums of ``y - u`` stay in ``[-radius, radius]``, at an end wherever ``u`` jumps."""
    u = np.array(denoise(list(y), radius))
    sums = np.cumsum(np.asarray(y) - u)
    assert abs(sums[-1]) <= tolerance
    assert (np.abs(sums) <= radius + tolerance).all()
    jumps = np.diff(u)
    moved = np.abs(jumps) > tolerance
    np.testing.assert_allclose(sums[:-1][moved], -radius * np.sign(jumps[moved]), atol=tolerance)


@settings(max_examples=150, deadline=None)
@given(st.lists(ELEMENTS, min_size=2, max_size=12), st.sampled_from([0.0, 0.01, 0.5, 1.0, 4.0]))
def test_optimality(y, radius):
    check_optimality(y, radius, 1e-9)


@pytest.mark.parametrize("radius", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("kind", ["noise", "walk", "steps"])
def test_optimality_of_long_sequences(radius, kind):
    noise = np.random.default_rng(0).normal(size=2000)
    y = {"noise": noise, "walk": 1e3 + noise.cumsum(), "steps": np.round(noise)}[kind]
    check_optimality(y, radius, 1e-8)


def test_extremes():
    y = [3.0, -1.0, 4.0, 1.0, -5.0]
    assert denoise(y, 0.0) == y
    assert denoise(y, 1e6) == pytest.approx([0.4] * 5)
    assert denoise([], 1.0) == []
    assert denoise([2.5], 1.0) == [2.5]


def test_not_finite():
    for value in (math.nan, math.inf):
        assert all(map(math.isnan, denoise([1.0, value, 2.0], 1.0)))
