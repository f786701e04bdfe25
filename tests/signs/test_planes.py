from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_signvr.signs import count_ones, count_planes, examine, majority, read_planes
from lightning_signvr.signs.oracle import bytes_to_bits, count


@st.composite
def ballots(draw):
    """Votes and abstentions of 1 to 9 workers on 1 to 70 bytes."""
    seed, voters, size = draw(st.tuples(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 70)))
    generator = torch.Generator().manual_seed(seed)
    votes, some, many = torch.randint(0, 256, (3, voters, size), generator=generator, dtype=torch.uint8)
    return votes, draw(st.sampled_from([None, some & many, some | many]))


@given(ballots())
@settings(max_examples=60, deadline=None)
def test_planes_count_ones(drawn):
    votes, _ = drawn
    planes = count_planes(votes)
    bits = bytes_to_bits(votes.reshape(-1), votes.numel() * 8).view(len(votes), -1)
    assert planes.shape == (len(votes).bit_length(), votes.shape[1])
    assert torch.equal(read_planes(planes, bits.shape[1]), bits.sum(0).float())
    assert count_ones(votes) == int(bits.sum())
    assert read_planes(planes, 3, torch.float64).tolist() == bits.sum(0)[:3].tolist()


@pytest.mark.parametrize("padding", [0, 5])
@given(ballots())
@settings(max_examples=60, deadline=None)
def test_examine_equals_counting_one_by_one(padding, drawn):
    votes, absent = drawn
    votes[:, -1] &= 0xFF >> padding  # padding votes + and never abstains
    if absent is not None:
        absent[:, -1] &= 0xFF >> padding
    tally = majority(votes, absent)
    inside = votes.shape[1] * 8 - padding
    look = examine(votes, absent, tally.negative, tally.silent, padding)
    positive, negative = (votes_for[:inside] for votes_for in count(votes, absent))
    margins = (positive - negative).abs()
    assert look.margins == torch.bincount(margins, minlength=len(votes) + 1).tolist()
    assert look.counts.votes == int((positive + negative).sum())
    assert look.counts.margin == int(margins.sum())
    assert look.counts.ties == int(((margins == 0) & (positive > 0)).sum())
    assert look.counts.silent == int((positive + negative == 0).sum())
    outcome = bytes_to_bits(tally.negative, inside)
    for worker, row in enumerate(votes):
        here = torch.ones(inside, dtype=torch.bool)
        if absent is not None:
            here = ~bytes_to_bits(absent[worker], inside)
        assert look.cast[worker] == int(here.sum())
        assert look.agreeing[worker] == int((here & (bytes_to_bits(row, inside) == outcome)).sum())
