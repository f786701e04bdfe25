from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from lightning_signvr.signs.delta import decode_, encode, longest_code


def plane(raw: bytes) -> torch.Tensor:
    return torch.tensor(list(raw), dtype=torch.uint8)


def code_of(*parts: int | bytes) -> torch.Tensor:
    """Integers as int64, bytes as they are."""
    return plane(b"".join(p if isinstance(p, bytes) else p.to_bytes(8, "little", signed=True) for p in parts))


@st.composite
def planes(draw):
    """Two planes of one size that differ in any number of words."""
    words = draw(st.integers(0, 12))
    first, second = (draw(st.lists(st.binary(min_size=8, max_size=8), min_size=words, max_size=words))
                     for _ in range(2))  # fmt: skip
    kept = draw(st.lists(st.booleans(), min_size=words, max_size=words))
    second = [a if keep else b for a, b, keep in zip(first, second, kept, strict=True)]
    return plane(b"".join(first)), plane(b"".join(second))


@given(planes(), st.binary(max_size=20))
def test_decoding_reverses_encoding(pair, behind):
    previous, current = pair
    code = encode(previous, current)
    changed = (previous.view(-1, 8) != current.view(-1, 8)).any(1).sum().item()
    assert (code.numel() == 0) == (changed == 0)
    assert code.numel() % 8 == 0
    assert code.numel() <= min(longest_code(len(current)), 8 + 8 * changed + 8 * ((changed + 1) // 2))
    if changed:
        code = torch.cat([code, plane(behind)])
    assert decode_(previous, code) is previous
    assert torch.equal(previous, current)


def test_a_few_changes_of_a_large_plane_cost_little():
    previous = torch.zeros(80_000, dtype=torch.uint8)
    current = previous.clone()
    current[[5, 7, 40_000, 79_999]] = 1  # three words
    assert encode(previous, current).numel() == 8 + 3 * 8 + 16


def test_a_count_of_zero_means_no_change():
    target = plane(bytes(range(16)))
    assert decode_(target, code_of(0, b"whatever")).tolist() == list(range(16))


@given(st.integers(0, 6), st.binary(max_size=80) | st.tuples(st.integers(-3, 9), st.binary(max_size=80)))
def test_damaged_codes_raise_or_stay_inside_the_plane(words, damaged):
    code = plane(damaged) if isinstance(damaged, bytes) else code_of(*damaged)
    memory = torch.full((8 * words + 32,), 0x5A, dtype=torch.uint8)
    target = memory[16:-16]
    before = target.clone()
    try:
        decode_(target, code)
    except ValueError:
        assert torch.equal(target, before)
    assert memory[:16].eq(0x5A).all()
    assert memory[-16:].eq(0x5A).all()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (plane(b"1234567"), "7 bytes is cut off"),
        (code_of(-1, bytes(15)), "16 bytes does not fit a code of 23"),
        (code_of(-2, bytes(40)), "-2 changed words do not fit"),
        (code_of(2**62, bytes(40)), "changed words do not fit"),
        (code_of(2, bytes(23)), "2 changed words do not fit a code of 31 bytes"),
        (code_of(3, bytes(40)), "3 changed words do not fit"),
        (code_of(1, 1, b"\2\0\0\0"), "outside of a plane of 2 words"),
        (code_of(1, 1, b"\xff\xff\xff\xff"), "outside of a plane of 2 words"),
        (code_of(2, 1, 2, b"\1\0\0\0\0\0\0\0"), "do not ascend"),
        (code_of(2, 1, 2, b"\1\0\0\0\1\0\0\0"), "do not ascend"),
    ],
)
def test_each_damage_has_its_message(code, reason):
    with pytest.raises(ValueError, match=reason):
        decode_(torch.zeros(16, dtype=torch.uint8), code)


@given(planes(), st.data())
def test_a_cut_off_code_is_never_taken_for_a_whole_one(pair, data):
    code = encode(*pair)
    assume(code.numel() > 0)
    padding = 4 if code.view(torch.int64)[0] % 2 == 1 else 0
    cut = data.draw(st.integers(1, code.numel() - 1 - padding))
    with pytest.raises(ValueError, match=r"fit a code|cut off"):
        decode_(pair[0], code[:cut])
