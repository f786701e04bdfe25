from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_signvr.signs import Counts
from lightning_signvr.voting.header import BallotHeader, OutcomeHeader

flags = st.lists(st.booleans(), max_size=130)
rooms = st.integers(0, 2**40).map(lambda words: 8 * words)
numbers = st.integers(0, 2**47)
counts = st.builds(lambda margin, lost, *others: Counts(margin + lost, margin, *others), *[numbers] * 4)
words = st.integers(0, 2**64 - 1)


def result_or_complaint(read):
    """What ``read`` returns, or the message of the RuntimeError that it raises."""
    try:
        return read()
    except RuntimeError as error:
        return str(error)


@given(words, words, rooms, flags, st.integers(0, 2**8 - 1))
def test_ballot_header_round_trip(step, digest, room, missing, nonfinite):
    header = BallotHeader(step, digest, room, missing, nonfinite=nonfinite)
    data = header.to_bytes()
    assert len(data) == BallotHeader.size(len(missing))
    assert len(data) % 8 == 0
    assert BallotHeader.from_bytes(data, len(missing), 0, step, digest, 2**43, workers=8) == header


@pytest.mark.parametrize(("workers", "nonfinite"), [(1, 2), (4, 16), (4, 2**63)])
def test_workers_that_are_not_there_are_refused(workers, nonfinite):
    data = BallotHeader(7, 5, 0, [True], nonfinite=nonfinite).to_bytes()
    with pytest.raises(RuntimeError, match="rank 2 speaks of workers that it does not have"):
        BallotHeader.from_bytes(data, 1, 2, 7, 5, 64, workers=workers)


@given(counts, rooms)
def test_outcome_header_round_trip(tallied, room):
    header = OutcomeHeader(tallied, room)
    assert len(header.to_bytes()) == OutcomeHeader.size()
    assert OutcomeHeader.from_bytes(header.to_bytes(), 0, 2**43) == header


@given(counts, rooms, st.lists(st.floats(0, 2**99, width=32), max_size=9), st.lists(numbers, max_size=9))
def test_outcome_header_round_trip_with_extras(tallied, room, scales, details):
    header = OutcomeHeader(tallied, room, scales, np.array(details, np.int64) if details else None)
    data = header.to_bytes()
    sizes = len(scales), True, len(details)
    assert len(data) == OutcomeHeader.size(*sizes)
    read = OutcomeHeader.from_bytes(data, 0, 2**43, *sizes)
    assert (read.counts, read.room, read.scales) == (tallied, room, scales)
    assert (details or None) == (None if read.details is None else read.details.tolist())


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_an_answer_that_is_no_scale_is_refused(scale):
    data = OutcomeHeader(Counts(), 0, [1.0, scale]).to_bytes()
    with pytest.raises(RuntimeError, match="rank 2 answers with a scale that is negative or not finite"):
        OutcomeHeader.from_bytes(data, 2, 64, 2, True)


@pytest.mark.parametrize("number", [-1, 2**48 + 1, 2**63 - 1])
def test_details_that_cannot_be_are_refused(number):
    data = OutcomeHeader(Counts(), 0, None, np.array([3, number], np.int64)).to_bytes()
    with pytest.raises(RuntimeError, match="rank 2 sent details of a vote that cannot be"):
        OutcomeHeader.from_bytes(data, 2, 64, num_details=2)


@pytest.mark.parametrize("detailed", [False, True])
def test_all_ranks_ask_for_details_or_none(detailed):
    data = BallotHeader(7, 5, 0, [True], detailed=not detailed).to_bytes()
    theirs = "does not ask" if detailed else "asks"
    with pytest.raises(RuntimeError, match=f"rank 2 {theirs} for the details .* same callbacks"):
        BallotHeader.from_bytes(data, 1, 2, 7, 5, 64, False, detailed)


@pytest.mark.parametrize("detailed", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_all_ranks_send_exact_numbers_or_none(exact, detailed):
    header = BallotHeader(7, 5, 0, [True], None, detailed, exact)
    read = [1, 2, 7, 5, 64, False, detailed]
    assert BallotHeader.from_bytes(header.to_bytes(), *read, exact) == header
    theirs = "sends" if exact else "does not send"
    with pytest.raises(RuntimeError, match=f"rank 2 {theirs} a gradient in full precision .* same period"):
        BallotHeader.from_bytes(header.to_bytes(), *read, not exact)


@given(st.integers(0, 255), flags)
def test_a_flipped_bit_in_front_is_found_unless_it_is_a_possible_room(bit, missing):
    good = BallotHeader(7, 2**63 + 5, 16, missing)
    data = bytearray(good.to_bytes())
    data[bit // 8] ^= 1 << bit % 8
    read = result_or_complaint(
        lambda: BallotHeader.from_bytes(bytes(data), len(missing), 3, good.step, good.digest, 64)
    )
    if isinstance(read, str):
        assert read.startswith("rank 3 ")
    else:
        assert read in [*(replace(good, room=room) for room in (0, 24, 48)), replace(good, nonfinite=1)]


@given(st.binary(min_size=BallotHeader.size(10), max_size=BallotHeader.size(10)))
def test_garbage_is_no_ballot(data):
    with pytest.raises(RuntimeError, match=r"^rank 1 sent something that is not a sign vote"):
        BallotHeader.from_bytes(data, 10, 1, 0, 0, 64)


@given(st.binary(min_size=OutcomeHeader.size(), max_size=OutcomeHeader.size()))
def test_garbage_is_refused_or_a_possible_outcome(data):
    read = result_or_complaint(lambda: OutcomeHeader.from_bytes(data, 1, 64))
    if isinstance(read, str):
        assert read.startswith(("rank 1 sent counts that cannot be", "rank 1 asks for"))
    else:
        assert read.to_bytes() == data
        assert read.room in range(0, 65, 8)
        assert 0 <= read.counts.margin <= read.counts.votes


@pytest.mark.parametrize("counts", [(3, 4, 0, 0), (3, -1, 0, 0), (3, 1, -1, 0), (3, 1, 0, -1)])
def test_impossible_counts_have_their_message(counts):
    data = OutcomeHeader(Counts(*counts), 0).to_bytes()
    with pytest.raises(RuntimeError, match=r"^rank 2 sent counts that cannot be \(3 votes"):
        OutcomeHeader.from_bytes(data, 2, 64)


@pytest.mark.parametrize("counts", [(2**63 - 1, 1, 0, 0), (3, 1, 2**49, 0), (3, 1, 0, 2**62)])
def test_counts_that_would_not_add_up_in_64_bits_are_refused(counts):
    with pytest.raises(RuntimeError, match=r"^rank 2 sent counts that cannot be"):
        OutcomeHeader.from_bytes(OutcomeHeader(Counts(*counts), 0).to_bytes(), 2, 64)


@pytest.mark.parametrize("length", [0, 5, 31, 33])
def test_headers_of_another_length_are_refused(length):
    with pytest.raises(RuntimeError, match=rf"^rank 2 sent a header of {length} bytes, where 40 belong"):
        BallotHeader.from_bytes(bytes(length), 1, 2, 0, 0, 64)
    with pytest.raises(RuntimeError, match=rf"^rank 2 sent a header of {length} bytes, where 40 belong"):
        OutcomeHeader.from_bytes(bytes(length), 2, 64)


@pytest.mark.parametrize(
    ("step", "digest", "room", "reason"),
    [
        (8, 5, 0, "rank 2 is at step 8 where this rank is at step 7: .*equally often"),
        (7, 6, 0, "rank 2 votes on other tensors or by other rules"),
        (7, 5, 72, "rank 2 asks for 72 bytes, where at most 64"),
        (7, 5, 12, "rank 2 asks for 12 bytes"),
    ],
)
def test_a_ballot_on_something_else_has_its_message(step, digest, room, reason):
    with pytest.raises(RuntimeError, match=reason):
        BallotHeader.from_bytes(BallotHeader(step, digest, room, [True]).to_bytes(), 1, 2, 7, 5, 64)


def test_an_outcome_with_too_much_room_has_its_message():
    with pytest.raises(RuntimeError, match="rank 2 asks for 72 bytes, where at most 64"):
        OutcomeHeader.from_bytes(OutcomeHeader(Counts(), 72).to_bytes(), 2, 64)
