from __future__ import annotations

import math

import torch
from hypothesis import given, settings

from lightning_signvr.proximal import L0
from tests.proximal.inputs import STEPS, tensors


@settings(max_examples=60, deadline=None)
@given(tensors(6), STEPS)
def test_prox_is_a_minimizer(x, step):
    strength = 0.7
    point = L0(strength).prox(x, step)
    # coordinate by coordinate: nothing is better than 0 or x_i, nor anything else on a fine grid
    candidates = torch.cat([torch.zeros(1, 6), x[None], torch.linspace(-11, 11, 2001)[:, None].expand(-1, 6)])
    objectives = strength * (candidates != 0) + (candidates - x) ** 2 / (2 * step)
    found = strength * (point != 0) + (point - x) ** 2 / (2 * step)
    torch.testing.assert_close(found, objectives.min(0).values, rtol=1e-12, atol=1e-12)


def test_threshold():
    x = torch.tensor([1.9, 2.0, 2.1, -1.9, -2.0, -2.1, 0.0, math.inf])
    expected = torch.tensor([0.0, 0.0, 2.1, 0.0, 0.0, -2.1, 0.0, math.inf])  # at the threshold: 0
    assert torch.equal(L0(0.5).prox(x, 4.0), expected)


def test_value_counts():
    assert L0(0.5).value(torch.tensor([[0.0, -0.0], [1e-30, math.inf]])) == 1.0
