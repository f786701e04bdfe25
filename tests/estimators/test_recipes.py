"""An estimator's recipe, carried out, is what a call returns, and leaves the same state."""

from __future__ import annotations

import copy

import pytest
import torch

from lightning_signvr.estimators import PREVIOUS, Momentum, RawGradient, Storm, recipe_of
from lightning_signvr.signs import MovingAverage, Recipe
from lightning_signvr.voting import MajorityVote
from tests.signs.values import bits_of

STORM = {"beta": 0.1, "correction": 1.0, "correction_steps": None, "previous": "exact", "step": 0}
CASES = {
    "momentum": (Momentum, {"momentum": 0.9}),
    "storm": (Storm, STORM),
    "half corrected": (Storm, {**STORM, "correction": 0.5}),
    "not corrected": (Storm, {**STORM, "correction": 0.0}),
    "last batch": (Storm, {**STORM, "correction": 0.025, "previous": "last_batch"}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_previous", [False, True], ids=["alone", "with previous"])
def test_a_recipe_is_a_call_put_off(name, dtype, with_previous):
    kind, group = CASES[name]
    generator = torch.Generator().manual_seed(0)
    called: dict[str, torch.Tensor] = {}
    postponed: dict[str, torch.Tensor] = {}
    put_off = 0
    for _ in range(3):
        gradient, last = torch.randn(2, 40, generator=generator).to(dtype)
        at = {PREVIOUS: last} if with_previous else {}
        expected = kind()(gradient, called, group, at)
        before = copy.deepcopy(postponed)
        direction = kind().recipe(gradient, postponed, group, at)
        if isinstance(direction, Recipe):
            put_off += 1
            for key, value in before.items():
                assert torch.equal(postponed[key], value)  # nothing has happened yet
            assert direction.state is direction.compute_()
            direction = direction.state
        assert bits_of(direction) == bits_of(expected)
        assert called.keys() == postponed.keys()
        assert all(torch.equal(called[key], postponed[key]) for key in called)
    assert put_off == {"momentum": 3, "last batch": 0}.get(name, 2)  # STORM begins with its first gradient


class Doubled(Momentum):
    """Another call than the one that the recipe is of."""

    def __call__(self, gradient, state, group, at):
        return super().__call__(2 * gradient, state, group, at)


def test_a_recipe_counts_only_with_the_call_that_it_puts_off():
    momentum = Momentum()
    assert recipe_of(momentum) == momentum.recipe
    assert recipe_of(type("Same", (Momentum,), {})()) is not None
    assert recipe_of(Doubled()) is None
    assert recipe_of(RawGradient()) is None


def test_a_recipe_is_voted_on_where_there_is_no_kernel_too():
    recipe = MovingAverage(torch.tensor([4.0, 1.0]), torch.tensor([-2.0, -9.0]), keep=0.75, weight=0.25)
    assert MajorityVote()([recipe]).signs(0).tolist() == [1, -1]
    assert recipe.state.tolist() == [2.5, -1.5]
