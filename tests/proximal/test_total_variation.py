from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from lightning_signvr.proximal import TotalVariation1d, TotalVariation2d
from lightning_signvr.proximal.total_variation import PairVariation
from tests.proximal.inputs import STEPS, normal, residual, tensors


def degrees_and_pairs(component, shape):
    """How many pairs each element is in, and the pairs; both from values of 0-1 tensors only."""
    numel = torch.Size(shape).numel()

    def value(*ones):
        x = torch.zeros(numel)
        x[list(ones)] = 1
        return round(component.value(x.view(shape)).item() / component.strength)

    degrees = [value(element) for element in range(numel)]
    pairs = {(a, b) for a, b in combinations(range(numel), 2) if value(a, b) < degrees[a] + degrees[b]}
    return degrees, pairs


def neighbours(rows, columns):
    """Every pair of neighbours of an image, without wrap-around."""
    down = [
        (row * columns + column, (row + 1) * columns + column)
        for row in range(rows - 1)
        for column in range(columns)
    ]
    right = [
        (row * columns + column, row * columns + column + 1)
        for row in range(rows)
        for column in range(columns - 1)
    ]
    return sorted(down + right)


@pytest.mark.parametrize(
    ("regularizer", "shape", "expected"),
    [(TotalVariation1d(0.5), (length,), neighbours(1, length)) for length in (1, 2, 3, 4, 7)]
    + [
        (TotalVariation2d(0.5), (rows, columns), neighbours(rows, columns))
        for rows, columns in ((1, 1), (1, 4), (5, 1), (2, 2), (3, 4), (4, 3))
    ],
    ids=str,
)
def test_components_cover_every_pair_once_and_are_disjoint(regularizer, shape, expected):
    found = []
    for component in regularizer.components:
        degrees, pairs = degrees_and_pairs(component, shape)
        assert max(degrees) <= 1
        assert sum(degrees) == 2 * len(pairs)
        found += pairs
    assert sorted(found) == expected


@pytest.mark.parametrize("component", TotalVariation2d(0.2).components, ids=repr)
@settings(max_examples=25, deadline=None)
@given(tensors(4, 5), STEPS)
def test_optimality_of_the_components(component, x, step):
    point, slope = (each.movedim(component.dim, -1) for each in residual(component, x, step))
    pairs = [(i, i + 1) for i in range(component.start, point.shape[-1] - 1, 2)]
    for first, second in pairs:
        torch.testing.assert_close(slope[..., first], -slope[..., second], rtol=1e-9, atol=1e-9)
        jump = point[..., second] - point[..., first]
        assert (slope[..., second].abs() <= component.strength + 1e-9).all()
        moved = jump != 0
        expected = component.strength * jump.sign()
        torch.testing.assert_close(slope[..., second][moved], expected[moved], rtol=1e-7, atol=1e-7)
    alone = sorted(set(range(point.shape[-1])) - {each for pair in pairs for each in pair})
    assert (slope[..., alone] == 0).all()


@pytest.mark.parametrize("pair", [(0.0, 3.0), (1.0, -2.0), (0.3, 0.5), (1.0, 1.0), (0.0, 1.0)], ids=str)
def test_a_pair_against_a_grid(pair):
    strength, step, spacing = 0.8, 0.625, 0.01
    x = torch.tensor(pair, dtype=torch.float64)
    point = PairVariation(strength, dim=-1, start=0).prox(x, step)
    grid = torch.arange(-2.5, 3.5, spacing, dtype=torch.float64)
    first, second = torch.meshgrid(grid, grid, indexing="ij")

    def objective(a, b):
        return strength * (b - a).abs() + ((a - x[0]) ** 2 + (b - x[1]) ** 2) / (2 * step)

    best = objective(first, second).argmin()
    assert objective(*point) <= objective(first, second).min() + 1e-12
    torch.testing.assert_close(
        point, torch.stack([first.flatten()[best], second.flatten()[best]]), rtol=0, atol=spacing
    )


def test_pairs_that_meet_are_exactly_equal():
    x = normal(10_000, scale=1e-3).float() + torch.tensor([1e3, 1e-3]).repeat(5000)
    first, second = TotalVariation1d(1e4).components[0].prox(x, 1.0).view(-1, 2).unbind(1)
    assert torch.equal(first, second)
    equal = torch.full((4,), 0.1)
    for component in TotalVariation1d(1.0).components:
        assert torch.equal(component.prox(equal, 1.0), equal)


@settings(max_examples=30, deadline=None)
@given(tensors(2, 6), STEPS)
def test_optimality_of_the_whole_sequence(x, step):
    point, slope = residual(TotalVariation1d(0.7), x, step)
    sums = slope.cumsum(-1)  # minus the dual variable of each difference
    assert (sums.abs() <= 0.7 + 1e-7).all()
    torch.testing.assert_close(
        (slope * point).sum(), TotalVariation1d(0.7).value(point), rtol=1e-7, atol=1e-7
    )


def denoise_2d(y, strength):
    """``argmin_u strength * TV(u) + ||u - y||^2 / 2`` by projected gradient on its dual, in NumPy."""
    down, right = np.zeros_like(y[1:]), np.zeros_like(y[:, 1:])
    for _ in range(3000):
        u = y.copy()
        u[1:] -= down
        u[:-1] += down
        u[:, 1:] -= right
        u[:, :-1] += right
        down = np.clip(down + np.diff(u, axis=0) / 8, -strength, strength)
        right = np.clip(right + np.diff(u, axis=1) / 8, -strength, strength)
    return u


def denoise_by_components(y, regularizer):
    """The same by gradient steps on the data term, each followed by the mean of the components' prox."""
    u = y.clone()
    for iteration in range(600):
        step = 1 / (1 + iteration)
        z = u - step * (u - y)
        u = sum(component.prox(z, step) for component in regularizer.components) / len(regularizer.components)
    return u


def test_mean_of_the_components_minimizes_the_whole_1d():
    y = torch.tensor([0.0, 0.2, -0.1, 2.0, 2.2, 1.9, 2.1, 0.4, 0.5], dtype=torch.float64)
    expected = TotalVariation1d(0.3).prox(y, 1.0)
    assert (expected - y).abs().max() > 0.1
    torch.testing.assert_close(denoise_by_components(y, TotalVariation1d(0.3)), expected, rtol=0, atol=0.01)


def test_mean_of_the_components_minimizes_the_whole_2d():
    y = normal(5, 4, scale=0.2)
    y[1:4, 1:3] += 2
    expected = torch.from_numpy(denoise_2d(y.numpy(), 0.3))
    assert (expected - y).abs().max() > 0.1
    torch.testing.assert_close(denoise_by_components(y, TotalVariation2d(0.3)), expected, rtol=0, atol=0.02)


def test_an_image_of_one_row_is_a_sequence():
    x = normal(1, 9)
    torch.testing.assert_close(TotalVariation2d(0.7).value(x), TotalVariation1d(0.7).value(x))


@pytest.mark.parametrize("regularizer", [TotalVariation1d(0.7), TotalVariation2d(0.7)], ids=repr)
def test_leading_dimensions_are_a_batch(regularizer):
    x = normal(2, 3, 5, 4)
    images = x.flatten(0, 1)
    torch.testing.assert_close(regularizer.value(x), sum(map(regularizer.value, images)))
    with_prox = [each for each in (regularizer, *regularizer.components) if each.exact_prox]
    for each in with_prox:
        expected = torch.stack([each.prox(image, 0.5) for image in images]).view_as(x)
        torch.testing.assert_close(each.prox(x, 0.5), expected)
    assert len(with_prox) in (3, 4)


def test_prox_of_the_whole_image_is_refused():
    assert not TotalVariation2d(1.0).exact_prox
    with pytest.raises(
        TypeError, match=r"no proximal operator in closed form: average those of its components"
    ):
        TotalVariation2d(1.0).prox(torch.zeros(3, 3), 1.0)


def test_too_few_dimensions():
    one, two = TotalVariation1d(1.0), TotalVariation2d(1.0)
    for each in (one, *one.components):
        for call in (each.value, lambda x, each=each: each.prox(x, 1.0)):
            with pytest.raises(ValueError, match=r"needs x of shape \[\.\.\., length\], got 0 dimension"):
                call(torch.tensor(1.0))
    for each in (two, *two.components[:2]):
        with pytest.raises(ValueError, match=r"needs x of shape \[\.\.\., rows, columns\], got 1 dimension"):
            each.value(torch.zeros(3))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1.0, -1, 0), ValueError, "strength must be a finite number >= 0, got -1.0"),
        ((1.0, 0, 0), ValueError, "dim must be negative, counted from the end, got 0"),
        ((1.0, -1, 2), ValueError, "start must be 0 or 1, got 2"),
        ((1.0, -1.0, 0), TypeError, "dim must be an int, got -1.0"),
        ((1.0, -1, None), TypeError, "start must be an int, got None"),
    ],
)
def test_bad_arguments_of_pairs(arguments, error, message):
    with pytest.raises(error, match=message):
        PairVariation(*arguments)
