"""What holds for all of them."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from lightning_signvr.proximal import (
    L0,
    L1,
    Box,
    ElasticNet,
    GroupL21,
    NonNegative,
    NuclearNorm,
    Regularizer,
    SquaredL2,
    TotalVariation1d,
    TotalVariation2d,
)
from tests.proximal.inputs import CONVEX_WITH_PROX, DTYPES, EVERY, STEPS, WITH_PROX, normal, residual, tensors


def formula(regularizer, x):
    """The value in NumPy."""
    match regularizer:
        case L1(strength):
            return strength * np.abs(x).sum()
        case SquaredL2(strength):
            return strength / 2 * (x**2).sum()
        case ElasticNet(l1, l2):
            return l1 * np.abs(x).sum() + l2 / 2 * (x**2).sum()
        case Box(lower, upper):
            return 0.0 if x.min() >= lower and x.max() <= upper else math.inf
        case NonNegative():
            return 0.0 if x.min() >= 0 else math.inf
        case L0(strength):
            return strength * np.count_nonzero(x)
        case GroupL21(strength, dim):
            return strength * sum(math.sqrt((group**2).sum()) for group in np.moveaxis(x, dim, 0))
        case NuclearNorm(strength):
            return strength * np.linalg.norm(x, "nuc")
        case TotalVariation1d(strength):
            return strength * np.abs(np.diff(x, axis=-1)).sum()
        case TotalVariation2d(strength):
            return strength * sum(np.abs(np.diff(x, axis=axis)).sum() for axis in (0, 1))
        case _:  # the pairs of total variation
            line = np.moveaxis(x, regularizer.dim, -1)
            pairs = range(regularizer.start, line.shape[-1] - 1, 2)
            return regularizer.strength * sum(np.abs(line[..., i + 1] - line[..., i]).sum() for i in pairs)


@pytest.mark.parametrize("regularizer", EVERY, ids=repr)
@settings(max_examples=8, deadline=None)
@given(tensors(4, 5))
def test_value_is_its_formula(regularizer, x):
    assert regularizer.value(x).item() == pytest.approx(formula(regularizer, x.numpy()), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("regularizer", CONVEX_WITH_PROX, ids=repr)
@settings(max_examples=12, deadline=None)
@given(tensors(4, 5), tensors(4, 5), STEPS)
def test_residual_is_a_subgradient(regularizer, x, other, step):
    point, slope = residual(regularizer, x, step)
    for elsewhere in (other, regularizer.prox(other, step)):  # the second lies inside of a constraint set
        bound = regularizer.value(point) + (slope * (elsewhere - point)).sum()
        assert regularizer.value(elsewhere) >= bound - 1e-8 * (1 + bound.abs())


@pytest.mark.parametrize("regularizer", CONVEX_WITH_PROX, ids=repr)
@settings(max_examples=12, deadline=None)
@given(tensors(4, 5), tensors(4, 5), STEPS)
def test_prox_is_firmly_nonexpansive(regularizer, x, other, step):
    moved = regularizer.prox(x, step) - regularizer.prox(other, step)
    assert moved.square().sum() <= (moved * (x - other)).sum() + 1e-9


@pytest.mark.parametrize("regularizer", WITH_PROX, ids=repr)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(regularizer, dtype):
    x = normal(4, 5, scale=2.0).to(dtype)
    point, value = regularizer.prox(x, 0.3), regularizer.value(x)
    working = torch.float64 if dtype is torch.float64 else torch.float32
    assert (point.dtype, point.shape, value.dtype, value.shape) == (dtype, (4, 5), working, ())
    # 16 bit: computed in float32, rounded once
    assert torch.equal(point, regularizer.prox(x.to(working), 0.3).to(dtype))
    exact = regularizer.prox(x.double(), 0.3)
    assert torch.allclose(point.double(), exact, rtol=torch.finfo(dtype).eps, atol=5e-6)


def test_values_of_16_bit_tensors_do_not_overflow():
    x = torch.full((300, 300), 200.0, dtype=torch.float16)
    assert L1(1.0).value(x).item() == pytest.approx(200 * 90000)
    assert SquaredL2(1.0).value(x).item() == pytest.approx(20000 * 90000)
    assert GroupL21(1.0).value(x).item() == pytest.approx(300 * 200 * math.sqrt(300))


@pytest.mark.parametrize("regularizer", WITH_PROX, ids=repr)
def test_prox_is_a_new_tensor_without_history(regularizer):
    for step in (1e-30, 0.5):
        x = torch.nn.Parameter(normal(4, 5).float())
        before = x.detach().clone()
        point = regularizer.prox(x, step)
        assert type(point) is torch.Tensor
        assert not point.requires_grad
        point.add_(1)
        assert torch.equal(x, before)


@pytest.mark.parametrize("regularizer", EVERY, ids=repr)
def test_memory_layout_does_not_matter(regularizer):
    x = normal(5, 4).T
    assert not x.is_contiguous()
    torch.testing.assert_close(regularizer.value(x), regularizer.value(x.contiguous()))
    if regularizer.exact_prox:
        torch.testing.assert_close(regularizer.prox(x, 0.5), regularizer.prox(x.contiguous(), 0.5))


@pytest.mark.parametrize("regularizer", WITH_PROX, ids=repr)
def test_nan_stays_where_it_is(regularizer):
    x = normal(4, 5)
    x[1, 2] = math.nan
    point = regularizer.prox(x, 0.5)
    assert point[1, 2].isnan()
    if isinstance(regularizer, (L0, L1, SquaredL2, ElasticNet, Box, NonNegative)):
        assert point.isnan().sum() == 1


@pytest.mark.parametrize("regularizer", EVERY, ids=repr)
def test_value_is_the_mean_of_the_components(regularizer):
    for x in (normal(4, 5), normal(3, 3).abs(), normal(1, 1), normal(2, 7, 6)):
        values = torch.stack([component.value(x) for component in regularizer.components])
        torch.testing.assert_close(values.mean(), regularizer.value(x))


def test_which_have_several_components():
    several = {type(each).__name__: len(each.components) for each in EVERY if each.components != (each,)}
    assert several == {"TotalVariation1d": 2, "TotalVariation2d": 4}


@pytest.mark.parametrize(
    "regularizer",
    [
        L1(0),
        SquaredL2(0),
        ElasticNet(0, 0),
        L0(0),
        GroupL21(0),
        NuclearNorm(0),
        TotalVariation1d(0),
        *TotalVariation2d(0).components,
        Box(-math.inf, math.inf),
    ],
    ids=repr,
)
def test_strength_zero_changes_nothing(regularizer):
    x = normal(4, 5)
    x[2] = 0
    torch.testing.assert_close(regularizer.prox(x, 2.0), x)
    assert regularizer.value(x) == 0


@pytest.mark.parametrize(
    "regularizer", [each for each in EVERY if each.value(torch.ones(2, 2)) < 9], ids=repr
)
def test_empty_tensors(regularizer):
    for shape in ((0, 3), (3, 0)):
        x = torch.zeros(shape)
        assert regularizer.value(x) == 0
        if regularizer.exact_prox:
            assert regularizer.prox(x, 1.0).shape == shape


@pytest.mark.parametrize("regularizer", EVERY, ids=repr)
def test_copies_are_equal(regularizer):
    for twin in (copy.deepcopy(regularizer), pickle.loads(pickle.dumps(regularizer))):
        assert twin == regularizer
        assert hash(twin) == hash(regularizer)
        assert repr(twin) == repr(regularizer)


def test_value_can_be_added_to_a_loss():
    x = torch.tensor([[3.0, 4.0], [-6.0, 8.0]], requires_grad=True)
    expected = {
        L1(0.5): [[0.5, 0.5], [-0.5, 0.5]],
        SquaredL2(0.5): [[1.5, 2.0], [-3.0, 4.0]],
        GroupL21(0.5): [[0.3, 0.4], [-0.3, 0.4]],
        TotalVariation1d(0.5): [[-0.5, 0.5], [-0.5, 0.5]],
    }
    for regularizer, gradient in expected.items():
        (found,) = torch.autograd.grad(regularizer.value(x), x)
        torch.testing.assert_close(found, torch.tensor(gradient))


@pytest.mark.parametrize("step", [1, torch.tensor(1.0), torch.tensor([1.0], dtype=torch.float64)], ids=repr)
def test_step_as_number_or_tensor(step):
    assert torch.equal(L1(0.5).prox(torch.tensor([2.0, -0.25]), step), torch.tensor([1.5, 0.0]))


class TestBadInput:
    @pytest.mark.parametrize("step", [0, 0.0, -1.0, math.nan, math.inf, torch.tensor(0.0)], ids=repr)
    def test_step_out_of_range(self, step):
        with pytest.raises(ValueError, match=r"step must be a finite number > 0, got .*skip the prox"):
            L1(1.0).prox(torch.zeros(2), step)

    def test_step_of_several_elements(self):
        with pytest.raises(ValueError, match=r"step as a tensor must have one element, got shape \(2,\)"):
            L1(1.0).prox(torch.zeros(2), torch.ones(2))

    @pytest.mark.parametrize("step", ["1", None, True, torch.tensor(True)], ids=repr)
    def test_step_that_is_no_number(self, step):
        with pytest.raises(TypeError, match="step must be a number, got"):
            L1(1.0).prox(torch.zeros(2), step)

    @pytest.mark.parametrize(
        "make", [L1, SquaredL2, L0, GroupL21, NuclearNorm, TotalVariation1d, TotalVariation2d]
    )
    def test_strength(self, make):
        for value in (-1, -0.1, math.nan, math.inf):
            with pytest.raises(ValueError, match=rf"strength must be a finite number >= 0, got {value}"):
                make(value)
        for value in ("1", None, True, torch.tensor(1.0)):
            with pytest.raises(TypeError, match="strength must be a number, got"):
                make(value)

    @pytest.mark.parametrize("regularizer", EVERY, ids=repr)
    def test_tensors_that_are_not_dense_floating_point(self, regularizer):
        for call in (regularizer.value, lambda x: regularizer.prox(x, 1.0)):
            for dtype in (torch.int64, torch.bool, torch.complex64):
                with pytest.raises(
                    TypeError, match=r"x has dtype \w+, supported are float32, .*x\.float\(\)"
                ):
                    call(torch.zeros(2, 2, dtype=dtype))
            with pytest.raises(TypeError, match=r"x is sparse .*x\.to_dense\(\)"):
                call(torch.eye(2).to_sparse())
            with pytest.raises(TypeError, match=r"x must be a torch.Tensor, got list"):
                call([1.0])

    def test_what_is_not_written_cannot_be_made(self):
        class Nothing(Regularizer):
            def _value(self, x):
                return x.sum()

        with pytest.raises(TypeError, match="_prox"):
            Nothing()
