from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_signvr.signs import random_bytes

words = st.integers(0, 2**64 - 1)


@given(words, words, words, st.integers(0, 200), st.integers(0, 200))
def test_every_range_is_a_part_of_one_stream(seed, step, stream, first, second):
    start, stop = sorted((first, second))
    whole = random_bytes(seed, step, stream, 0, 200)
    part = random_bytes(seed, step, stream, start, stop)
    assert part.dtype == torch.uint8
    assert torch.equal(part, whole[start:stop])


def test_bytes_are_those_of_philox():
    generator = np.random.Philox(key=[5, 9], counter=[0, 7, 0, 0])
    expected = np.random.Generator(generator).integers(0, 2**64, 8, dtype=np.uint64, endpoint=False)
    assert random_bytes(5, 7, 9, 0, 64).tolist() == list(expected.astype("<u8").tobytes())


def test_far_ranges_cost_no_more_than_near_ones():
    assert random_bytes(0, 0, 0, 2**50, 2**50 + 3).numel() == 3


def test_seed_step_and_stream_each_change_the_bits():
    keys = itertools.product((0, 1, 2**64 - 1), repeat=3)
    assert len({bytes(random_bytes(*key, 0, 16).tolist()) for key in keys}) == 27


@pytest.mark.parametrize("bit", range(8))
def test_bits_are_fair(bit):
    ones = int((random_bytes(3, 1, 4, 0, 100_000) >> bit & 1).sum())
    assert abs(ones - 50_000) < 800  # 5 standard deviations


def test_global_generators_are_left_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    random_bytes(0, 0, 0, 0, 100)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
