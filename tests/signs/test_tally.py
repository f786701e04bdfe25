from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_signvr.signs import Counts, majority
from lightning_signvr.signs.tally import oracle_majority
from tests.signs.values import to_bits, to_bytes

VOTERS = (*range(1, 10), 16, 33)


def count_one_by_one(rows, abstaining):
    """Outcome planes and counts in plain Python."""
    negative, tied, silent, counts = [], [], [], Counts()
    numel = rows.shape[1] * 8
    ballots = [to_bits(row, numel) for row in rows]
    absences = [to_bits(row, numel) for row in abstaining] if abstaining is not None else None
    for position in range(numel):
        votes = [
            -1 if ballot[position] else 1
            for voter, ballot in enumerate(ballots)
            if absences is None or not absences[voter][position]
        ]
        negative.append(sum(votes) < 0)
        tied.append(bool(votes) and sum(votes) == 0)
        silent.append(not votes)
        counts += Counts(len(votes), abs(sum(votes)), tied[-1], silent[-1])
    return to_bytes(negative), to_bytes(tied), to_bytes(silent), counts


def check(rows, abstaining):
    negative, tied, silent, counts = count_one_by_one(rows, abstaining)
    for tally in (majority(rows, abstaining), oracle_majority(rows, abstaining)):
        assert tally.negative.tolist() == negative
        assert (tally.tied is None and not any(tied)) or tally.tied.tolist() == tied
        assert (tally.silent is None and not any(silent)) or tally.silent.tolist() == silent
        assert tally.counts == counts


@given(st.data(), st.integers(1, 20), st.integers(0, 12))
def test_tally_equals_counting_one_by_one(data, voters, size):
    planes = st.binary(min_size=voters * size, max_size=voters * size)
    planes = planes.map(lambda raw: torch.tensor(list(raw), dtype=torch.uint8).view(voters, size))
    check(data.draw(planes), data.draw(st.none() | planes))


@pytest.mark.parametrize("voters", VOTERS)
@pytest.mark.parametrize("absent", [0.0, 0.1, 0.9])
def test_tally_of_many_random_votes(voters, absent):
    generator = torch.Generator().manual_seed(voters)
    rows, first, second = torch.randint(0, 256, (3, voters, 41), dtype=torch.uint8, generator=generator)
    check(rows, {0.0: None, 0.1: first & second & first.roll(1), 0.9: first | second | first.roll(1)}[absent])


@pytest.mark.parametrize("voters", VOTERS)
def test_unanimity(voters):
    for byte, votes in ((0x00, 0), (0xFF, 0), (0xFF, voters // 2)):
        rows = torch.full((voters, 3), byte, dtype=torch.uint8)
        abstaining = torch.zeros_like(rows)
        abstaining[:votes] = 0xFF
        tally = majority(rows, abstaining)
        assert tally.negative.eq(byte).all()
        assert tally.counts == Counts(votes=24 * (voters - votes), margin=24 * (voters - votes))


def test_blocks_with_and_without_abstentions_make_one_tally():
    """Larger than the work space, with rows that are slices of a wider buffer, as the vote passes them."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.randint(0, 256, (2, 4, 150_011), dtype=torch.uint8, generator=generator)
    rows, abstaining = wide[0, :, 8:], wide[1, :, 8:]
    abstaining[:, 70_000:140_000] = 0
    fast, slow = majority(rows, abstaining), oracle_majority(rows, abstaining)
    assert fast.counts == slow.counts
    for plane in ("negative", "tied", "silent"):
        assert torch.equal(getattr(fast, plane), getattr(slow, plane))


def test_votes_are_not_changed():
    rows = torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8]], dtype=torch.uint8)
    abstaining = rows.flip(0)
    for voters in (1, 2, 4):
        majority(rows[:voters]).negative.fill_(0xFF)
        majority(rows[:voters], abstaining[:voters]).negative.fill_(0xFF)
    assert rows.tolist() == abstaining.flip(0).tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]


@pytest.mark.parametrize(
    "rows", [torch.zeros(0, 3, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8), torch.zeros(2, 3)]
)
def test_rows_that_are_no_votes(rows):
    with pytest.raises(ValueError, match=r"^rows must be uint8 of shape \[voters > 0, bytes\]"):
        majority(rows)


def test_abstentions_that_do_not_fit():
    with pytest.raises(ValueError, match=r"^abstaining has shape \(3, 2\), the votes have \(2, 3\)"):
        majority(torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(3, 2, dtype=torch.uint8))
