"""Randomized signs: their numbers, their moments, and what a majority makes of them."""

from __future__ import annotations

import itertools
import math
import statistics
from random import Random

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_signvr.signs import majority, pack_signs, random_uniform, unpack_signs
from lightning_signvr.signs.encoders import (
    MAGNITUDE_POLICIES,
    NOISES,
    clipped,
    dither,
    magnitude_of,
    magnitudes,
    merged_magnitudes,
    noise_from,
    radius_of,
)
from lightning_signvr.voting.rules import TIE_STREAM, encoder_stream, zero_stream

DRAWS = 1 << 20
GRID = torch.arange(1 - 2**24, 2**24, 2, dtype=torch.int32).float().mul_(2.0**-24)
"""Every number that random_uniform can draw, each once."""


# -- random numbers -------------------------------------------------------------------------------


def test_numbers_are_those_of_philox() -> None:
    words = np.random.Philox(key=[5, 9], counter=[0, 7, 3, 0]).random_raw(4).tolist()
    halves = [half for word in words for half in (word & 0xFFFFFFFF, word >> 32)]
    signed = [half - 2**32 if half >= 2**31 else half for half in halves]
    expected = [(2 * (number // 256) + 1) / 2**24 for number in signed]
    drawn = random_uniform(5, 7, 9, 3, 7)
    assert drawn.dtype == torch.float32
    assert drawn.tolist() == expected[:7]


def test_numbers_have_the_moments_of_a_uniform_distribution() -> None:
    drawn = random_uniform(1, 2, 3, 4, DRAWS).double()
    assert -1 < drawn.min() < -0.99999
    assert 0.99999 < drawn.max() < 1
    for power in range(1, 7):
        mean = 0.0 if power % 2 else 1 / (power + 1)
        variance = 1 / (2 * power + 1) - mean**2
        assert abs((drawn**power).mean() - mean) < 4.5 * math.sqrt(variance / DRAWS)
    neighbours = (drawn[1:] * drawn[:-1]).mean()
    assert abs(neighbours) < 4.5 / 3 / math.sqrt(DRAWS)


def test_fewer_numbers_are_the_first_of_more_and_none_are_none() -> None:
    whole = random_uniform(0, 1, 2, 3, 100)
    for numel in (0, 1, 2, 7, 8, 99):
        assert torch.equal(random_uniform(0, 1, 2, 3, numel), whole[:numel])


def test_every_part_of_the_key_changes_all_numbers() -> None:
    size, keys = 1 << 12, list(itertools.product((0, 1, 2**64 - 1), repeat=4))
    drawn = torch.stack([random_uniform(*key, size) for key in keys])
    products = drawn @ drawn.T / size * 3  # correlations: 1 with themselves, else about 0
    assert (products - torch.eye(len(keys))).abs().max() < 6 / math.sqrt(size)
    assert torch.equal(drawn[5], random_uniform(*keys[5], size))


def test_long_tensors_do_not_reach_the_numbers_of_the_next() -> None:
    first, second = random_uniform(0, 0, 0, 0, 1 << 16), random_uniform(0, 0, 0, 1, 8)
    assert not (first.unfold(0, 8, 1) == second).all(1).any()


def test_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    random_uniform(0, 0, 0, 0, 100)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


def test_streams_are_disjoint() -> None:
    workers = [0, 1, 2, 1000, 2**31, 2**32 - 1]
    streams = [TIE_STREAM, *map(zero_stream, workers), *map(encoder_stream, workers)]
    assert len(set(streams)) == len(streams)
    assert zero_stream(2**32 - 1) < encoder_stream(0)  # both grow with the worker
    assert encoder_stream(2**32 - 1) < 2**64


# -- the stochastic sign --------------------------------------------------------------------------


@pytest.mark.parametrize("eighths", [-5, 0, 8])
def test_probability_is_exact_over_all_numbers(eighths: int) -> None:
    """``P[+1] = (1 + v / R) / 2``, as a count of all 2**24 numbers; a direction of 0 is silent."""
    signs = dither(torch.full_like(GRID, eighths / 8), GRID, 1.0)
    count = (signs > 0).sum().item() - (signs < 0).sum().item()
    assert count == eighths * 2**24 / 8


def test_far_beyond_the_radius_the_sign_is_certain() -> None:
    noise = torch.tensor([-1 + 2**-24, 1 - 2**-24])
    assert (dither(torch.tensor([1.0, 1.0]), noise, 1.0) > 0).all()  # |v| = R is certain already
    assert (dither(torch.tensor([-9.0, -9.0]), noise, 1.0) < 0).all()


def test_moments_of_the_stochastic_sign() -> None:
    """``E[R S_R] = v`` and ``E||R S_R - v||^2 = d R^2 - ||v||^2``."""
    direction, radius = torch.tensor([0.9, -0.5, 0.25, -0.01, 1.5]), 1.5
    repeated = direction.expand(DRAWS // 5, 5)
    drawn = radius * dither(repeated, random_uniform(0, 0, 0, 0, repeated.numel()), radius).sign()
    error = 4.5 * radius / math.sqrt(len(drawn))
    assert (drawn.mean(0) - direction).abs().max() < error
    squared = (drawn - direction).square().sum(1).double()
    expected = 5 * radius**2 - direction.square().sum().item()
    assert abs(squared.mean() - expected) < 4.5 * squared.std() / math.sqrt(len(drawn))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_values_without_a_sign_stay_without(dtype: torch.dtype) -> None:
    inf, nan = math.inf, math.nan
    direction = torch.tensor([0.0, -0.0, nan, inf, -inf, 1e-4, -1e-4], dtype=dtype)
    before = direction.clone()
    for seed in range(20):
        noise = random_uniform(seed, 0, 0, 0, 7)
        result = dither(direction, noise, 2.0)
        assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert result[:2].tolist() == [0, 0]
        assert result[2].isnan()
        assert result[3:5].tolist() == [inf, -inf]
        assert torch.equal(result[5:] > 0, noise[5:] > 0)  # a magnitude far below the radius is a coin
    assert torch.equal(direction.nan_to_num(), before.nan_to_num())


@pytest.mark.parametrize("layout", ["transposed", "channels_last"])
def test_layout_in_memory_does_not_matter(layout: str) -> None:
    values = torch.randn(2, 3, 4, 5)
    other = (
        values.contiguous(memory_format=torch.channels_last)
        if layout == "channels_last"
        else values.transpose(0, 3).contiguous().transpose(0, 3)
    )
    noise = random_uniform(0, 0, 0, 0, values.numel())
    assert torch.equal(dither(other, noise, 1.0), dither(values, noise, 1.0))


# -- noise ----------------------------------------------------------------------------------------


def test_gaussian_noise_is_the_normal_quantile() -> None:
    uniform = random_uniform(0, 0, 0, 0, 10_000)
    noise = noise_from(uniform.clone(), "gaussian")
    normal = torch.distributions.Normal(0.0, 1.0)
    assert torch.allclose(normal.cdf(noise.double()), (uniform.double() + 1) / 2, atol=1e-6)
    ends = noise_from(GRID[[0, -1]], "gaussian")
    assert 5 < ends[1] < 6
    assert ends[0] == -ends[1]


def test_uniform_noise_is_what_came_in() -> None:
    uniform = random_uniform(0, 0, 0, 0, 10)
    assert noise_from(uniform, "uniform") is uniform
    with pytest.raises(ValueError, match="distribution must be one of 'gaussian', 'uniform', got 'laplace'"):
        noise_from(uniform, "laplace")
    assert NOISES == ("gaussian", "uniform")


def test_gaussian_sign_is_asymptotically_unbiased() -> None:
    """``E[sign(v + sigma xi)] = erf(v / (sigma sqrt 2))``."""
    uniform = random_uniform(0, 0, 0, 0, DRAWS)
    for value in (0.1, -0.5, 1.0):
        mean = dither(torch.full((DRAWS,), value), noise_from(uniform, "gaussian"), 1.0).sign().mean()
        assert abs(mean - math.erf(value / math.sqrt(2))) < 4.5 / math.sqrt(DRAWS)


# -- radius ---------------------------------------------------------------------------------------


def test_radius_policies() -> None:
    direction = torch.tensor([3.0, -4.0, 0.0, 12.0])
    assert radius_of(direction, "fixed", 2.0) == 2.0
    assert radius_of(direction, "max", 0.5) == 6
    assert radius_of(direction, "rms", 2.0) == 13
    running = torch.tensor([5.0, 1.0, 0.0, 12.5])
    assert radius_of(direction, "running", 2.0, running).tolist() == [10, 8, 0, 25]
    assert running.tolist() == [5, 4, 0, 12.5]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_number_spoils_no_radius(bad: float) -> None:
    direction = torch.tensor([3.0, bad, -4.0])
    assert magnitudes(direction).tolist() == [3, 0, 4]
    assert radius_of(direction, "max", 1.0) == 4
    assert radius_of(direction, "rms", math.sqrt(3)) == pytest.approx(5)
    running = torch.zeros(3)
    radius_of(direction, "running", 1.0, running)
    assert running.tolist() == [3, 0, 4]


def test_magnitudes_of_all_workers_leave_out_those_that_have_none() -> None:
    sent = torch.tensor([[3.0, 0.0, 0.0, 1e30], [1.0, 2.0, 0.0, 1e30]])
    torch.testing.assert_close(merged_magnitudes(sent, "max"), torch.tensor([3.0, 2.0, 0.0, 1e30]))
    torch.testing.assert_close(merged_magnitudes(sent, "rms"), torch.tensor([math.sqrt(5), 2.0, 0.0, 1e30]))


def merged_by_hand(sent: list[float], policy: str) -> float:
    """Of one tensor."""
    present = sorted(number for number in sent if number > 0)
    if len(present) >= 3:
        present = [min(number, 4 * statistics.median_low(present)) for number in present]
    if policy == "max":
        return max(present, default=0.0)
    return math.sqrt(sum(number**2 for number in present) / max(1, len(present)))


@pytest.mark.parametrize("policy", MAGNITUDE_POLICIES)
def test_outliers_count_as_a_multiple_of_the_median(policy: str) -> None:
    random = Random(0)
    choices = [0.0, 1.0, 2.0, 3.9, 4.1, 9.0, 1e-30, 1e30]
    sent = [[random.choice(choices) for _ in range(500)] for _ in range(7)]
    for workers in (1, 2, 3, 4, 5, 6, 7):
        expected = [merged_by_hand(list(numbers), policy) for numbers in zip(*sent[:workers], strict=True)]
        torch.testing.assert_close(
            merged_magnitudes(torch.tensor(sent[:workers]), policy), torch.tensor(expected)
        )


@pytest.mark.parametrize("policy", MAGNITUDE_POLICIES)
@pytest.mark.parametrize("workers", [3, 4, 5, 7, 8])
def test_a_minority_moves_the_radius_by_a_bounded_factor(workers: int, policy: str) -> None:
    random = Random(workers)
    largest = torch.finfo(torch.float32).max
    for _ in range(300):
        liars = random.randint(1, (workers - 1) // 2)
        honest = [random.uniform(1, 20) for _ in range(workers - liars)]
        lies = [random.choice([0.0, 1e-38, 0.5, 10.0, 100.0, largest]) for _ in range(liars)]
        radius = float(merged_magnitudes(torch.tensor([honest + lies]).T, policy))
        assert math.sqrt(0.5) * min(honest) < radius <= 4 * max(honest) * (1 + 1e-6)


def test_a_radius_is_not_rounded_to_16_bits() -> None:
    direction = torch.tensor([1.0, -1.0]).bfloat16()
    assert magnitude_of(direction, "max").dtype == torch.float32
    assert radius_of(direction, "max", 0.999) == torch.tensor(0.999)
    assert clipped(direction, torch.tensor(0.999)) == 2
    assert clipped(direction, torch.tensor(1.001)) == 0


def test_radius_errors() -> None:
    with pytest.raises(ValueError, match="policy must be one of 'fixed', 'max', 'rms', 'running', got 'l2'"):
        radius_of(torch.ones(1), "l2", 1.0)
    with pytest.raises(ValueError, match="running is missing"):
        radius_of(torch.ones(1), "running", 1.0)


def test_clipped_counts_what_is_strictly_beyond() -> None:
    direction = torch.tensor([1.0, -2.0, 2.5, -3.0, math.nan, math.inf, 0.0])
    assert clipped(direction, 2.0).item() == 3
    assert clipped(direction, torch.tensor(2.0)).item() == 3
    assert clipped(direction, torch.tensor([0.5, 2.0, 3.0, 1.0, 1.0, 1.0, 0.0])).item() == 3
    assert clipped(direction, 2.0).dim() == 0


# -- the majority of stochastic signs, arXiv 2609.18656, proposition 1 ------------------------------


def vote(directions: list[Tensor], radius: float) -> Tensor:
    """Majority of the workers' stochastic signs, as the library encodes, packs and counts them."""
    numel = directions[0].numel()
    packed = []
    for worker, direction in enumerate(directions):
        noise = random_uniform(0, 0, encoder_stream(worker), 0, numel)
        packed.append(pack_signs(dither(direction, noise, radius)))
    return unpack_signs(majority(torch.stack(packed)).negative, numel)


@pytest.mark.parametrize("inverse", [2, 4, 16])
def test_majority_of_unbiased_signs_is_biased_by_the_product_of_means(inverse: int) -> None:
    """Means ``(u, u, -2 u)`` sum to 0, but ``E[vote] = u^3``: of all 8 outcomes, and drawn."""
    unit = 1 / inverse
    means = (unit, unit, -2 * unit)
    exact = sum(
        np.sign(sum(signs)) * np.prod([(1 + s * m) / 2 for s, m in zip(signs, means, strict=True)])
        for signs in itertools.product((1, -1), repeat=3)
    )
    assert exact == unit**3
    drawn = vote([torch.full((DRAWS,), mean * 4) for mean in means], radius=4.0)
    assert abs(drawn.mean().item() - unit**3) < 4.5 / math.sqrt(DRAWS)


def test_a_tiny_radius_is_the_deterministic_vote() -> None:
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(1000, generator=generator) for _ in range(3)]
    expected = torch.stack(directions).sign().sum(0).sign()
    assert torch.equal(vote(directions, radius=1e-30), expected)
