from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_signvr.signs import (
    add_signs_,
    numpy_kernels,
    oracle,
    pack_signs,
    pack_signs_and_abstentions,
    packed_size,
    unpack_signs,
)
from tests.signs.values import DTYPES, bits_of, sign, special_values, to_bits, to_bytes

SIZES = (0, 1, 7, 8, 9, 64, 100)
EDGES = (numpy_kernels.BLOCK - 1, numpy_kernels.BLOCK, numpy_kernels.BLOCK + 1, 2 * numpy_kernels.BLOCK + 9)

dtypes = st.sampled_from(DTYPES)
alphas = st.floats(1e-6, 10) | st.floats(-10, -1e-6)


@st.composite
def tensors(draw, max_size=70):
    """1-D tensors with many special values; random bit patterns among the others."""
    dtype = draw(dtypes)
    width = torch.finfo(dtype).bits
    patterns = st.integers(-(2 ** (width - 1)), 2 ** (width - 1) - 1)
    special = st.sampled_from(bits_of(special_values(dtype)))
    integers = draw(st.lists(special | patterns, max_size=max_size))
    integer = {16: torch.int16, 32: torch.int32, 64: torch.int64}[width]
    return torch.tensor(integers, dtype=integer).view(dtype)


@st.composite
def planes(draw, numel):
    return torch.tensor(list(draw(st.binary(min_size=packed_size(numel), max_size=packed_size(numel)))),
                        dtype=torch.uint8)  # fmt: skip


def random_plane(numel: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (packed_size(numel),), dtype=torch.uint8, generator=generator)


def layouts() -> dict[str, torch.Tensor]:
    """The same kind of numbers in every layout that memory can have."""
    values = torch.linspace(-1, 1, 2 * 3 * 5 * 7).view(2, 3, 5, 7)
    return {
        "transposed": values[0, 0].t(),
        "strided": values.flatten()[1::3],
        "flipped rows": values[0, 0][:, 2:5],
        "channels last": values.contiguous(memory_format=torch.channels_last),
        "expanded": torch.tensor([[-1.0], [0.0], [2.0]]).expand(3, 5),
        "0-dim": torch.tensor(-3.0),
        "requires grad": torch.randn(3, requires_grad=True),
    }


# -- packing --------------------------------------------------------------------------------------


@given(tensors())
def test_packed_bits_follow_the_definition(values):
    signs = [sign(number) for number in values.tolist()]
    negative, abstaining, found = pack_signs_and_abstentions(values)
    assert pack_signs(values).tolist() == negative.tolist() == to_bytes([each < 0 for each in signs])
    assert abstaining.tolist() == to_bytes([each == 0 for each in signs])
    assert found == (0 in signs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("numel", EDGES)
@pytest.mark.parametrize("with_zeros", [False, True])
def test_packing_equals_the_oracle_around_the_edges_of_blocks(dtype, numel, with_zeros):
    values = torch.randn(numel, generator=torch.Generator().manual_seed(numel)).to(dtype)
    values[values == 0] = 1
    if with_zeros:
        values[-1] = 0
    expected = torch.empty(2, packed_size(numel), dtype=torch.uint8)
    assert oracle.pack(values, *expected) == with_zeros
    negative, abstaining, found = pack_signs_and_abstentions(values)
    assert torch.equal(negative, expected[0])
    assert torch.equal(abstaining, expected[1])
    assert torch.equal(pack_signs(values), expected[0])
    assert found == with_zeros


@pytest.mark.parametrize("name", layouts())
def test_elements_are_packed_in_logical_order(name):
    values = layouts()[name]
    flat = [sign(number) for number in values.detach().reshape(-1).tolist()]
    negative, abstaining, _ = pack_signs_and_abstentions(values)
    assert negative.tolist() == to_bytes([each < 0 for each in flat])
    assert abstaining.tolist() == to_bytes([each == 0 for each in flat])


@pytest.mark.parametrize("numel", SIZES)
def test_out_buffers_are_written_in_full_and_returned(numel):
    values = torch.arange(numel).float() - 3
    dirty = torch.full((2, packed_size(numel) + 2), 0xAA, dtype=torch.uint8)
    out, abstentions_out = dirty[0, 1:-1], dirty[1, 1:-1]
    assert pack_signs(values, out) is out
    assert torch.equal(out, pack_signs(values))
    negative, abstaining, _ = pack_signs_and_abstentions(values, out, abstentions_out)
    assert negative is out
    assert abstaining is abstentions_out
    assert torch.equal(abstaining, pack_signs_and_abstentions(values)[1])
    assert dirty[:, [0, -1]].eq(0xAA).all()  # nothing beside them


# -- unpacking ------------------------------------------------------------------------------------


@given(st.data(), st.integers(0, 70), dtypes)
def test_unpacked_signs_follow_the_bits(data, numel, dtype):
    packed, zeros = data.draw(planes(numel)), data.draw(planes(numel))
    signs = [-1.0 if bit else 1.0 for bit in to_bits(packed, numel)]
    with_zeros = [0.0 if zero else each for each, zero in zip(signs, to_bits(zeros, numel), strict=True)]
    assert unpack_signs(packed, numel, dtype).tolist() == signs
    result = unpack_signs(packed, numel, dtype, zeros)
    assert result.dtype == dtype
    assert result.tolist() == with_zeros
    assert bits_of(result) == bits_of(oracle.unpack(packed, zeros, numel, dtype))


@given(tensors())
def test_unpacking_reverses_packing(values):
    negative, abstaining, _ = pack_signs_and_abstentions(values)
    signs = unpack_signs(negative, values.numel(), torch.float64, abstaining)
    assert signs.tolist() == [sign(number) for number in values.tolist()]


# -- adding ---------------------------------------------------------------------------------------


@given(st.data(), tensors(), alphas, st.sampled_from([1.0, 0.5, 0.99, 0.0]), st.booleans())
def test_adding_equals_elementwise_arithmetic(data, target, alpha, decay, with_zeros):
    numel = target.numel()
    target = target.nan_to_num()  # which bits NaN has after a sum is up to the processor
    packed = data.draw(planes(numel))
    zeros = data.draw(planes(numel)) if with_zeros else None
    signs = torch.tensor([-1 if bit else 1 for bit in to_bits(packed, numel)], dtype=target.dtype)
    expected = target * decay if decay != 1.0 else target
    moved = torch.add(expected, signs, alpha=alpha)
    if zeros is not None:
        moved = torch.where(torch.tensor(to_bits(zeros, numel), dtype=torch.bool), expected, moved)

    slow = target.clone()
    oracle.add_signs(slow, packed, zeros, alpha, decay)
    assert bits_of(slow) == bits_of(moved)
    assert add_signs_(target, packed, alpha, zeros=zeros, decay=decay) is target
    assert bits_of(target) == bits_of(moved)


@pytest.mark.parametrize("alpha", [-0.1, 0.0, 0.1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_moves_where_the_sign_is_zero(dtype, alpha):
    before = special_values(dtype)
    for packed in (0x00, 0xFF):
        target = before.clone()
        bits, zeros = torch.full((2, packed_size(before.numel())), packed, dtype=torch.uint8)
        add_signs_(target, bits, alpha, zeros=zeros.fill_(0xFF))
        assert bits_of(target) == bits_of(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("numel", EDGES[1:])
def test_adding_and_unpacking_equal_the_oracle_around_the_edges_of_blocks(dtype, numel):
    packed, zeros = random_plane(numel, 1), random_plane(numel, 2)
    zeros[: numpy_kernels.BLOCK // 8] = 0  # a block without any zero
    before = torch.randn(numel, generator=torch.Generator().manual_seed(numel)).to(dtype)
    for plane in (None, zeros):
        fast, slow = before.clone(), before.clone()
        add_signs_(fast, packed, -0.01, zeros=plane, decay=0.999)
        oracle.add_signs(slow, packed, plane, -0.01, 0.999)
        assert torch.equal(fast, slow)
        assert torch.equal(
            unpack_signs(packed, numel, dtype, plane), oracle.unpack(packed, plane, numel, dtype)
        )


@pytest.mark.parametrize("name", [name for name in layouts() if name != "expanded"])
def test_adding_respects_the_layout_and_autograd(name):
    target = layouts()[name]
    packed, before = random_plane(target.numel(), 3), target.detach().clone()
    strides = target.stride()
    add_signs_(target, packed, 0.25)
    signs = unpack_signs(packed, target.numel()).view(target.shape)
    assert torch.equal(target, before + 0.25 * signs)
    assert target.stride() == strides
    assert target.grad_fn is None


def test_adding_leaves_the_gaps_of_a_slice_alone():
    whole = torch.zeros(20)
    add_signs_(whole[::2], torch.zeros(2, dtype=torch.uint8), 1.0)
    assert whole.tolist() == [1.0, 0.0] * 10


# -- bad input ------------------------------------------------------------------------------------

GOOD = torch.zeros(2, dtype=torch.uint8)
BAD_PLANES = {
    "another dtype": (GOOD.int(), TypeError, "uint8"),
    "two dimensions": (GOOD.view(1, 2), TypeError, "1-D"),
    "gaps": (torch.zeros(4, dtype=torch.uint8)[::2], TypeError, "contiguous"),
    "too small": (GOOD[:1], ValueError, "1 bytes, but 9 signs take exactly 2"),
    "too large": (torch.zeros(3, dtype=torch.uint8), ValueError, "3 bytes, but 9 signs take exactly 2"),
}


@pytest.mark.parametrize("name", BAD_PLANES)
def test_bad_planes_are_named(name):
    plane, error, reason = BAD_PLANES[name]
    values = torch.ones(9)
    calls = {
        "out": lambda: pack_signs(values, plane),
        "out ": lambda: pack_signs_and_abstentions(values, plane),
        "abstentions_out": lambda: pack_signs_and_abstentions(values, None, plane),
        "packed": lambda: unpack_signs(plane, 9),
        "zeros": lambda: unpack_signs(GOOD, 9, zeros=plane),
        "packed ": lambda: add_signs_(values, plane, 0.1),
        "zeros ": lambda: add_signs_(values, GOOD, 0.1, zeros=plane),
    }
    for argument, call in calls.items():
        with pytest.raises(error, match=f"^{argument.strip()} .*{reason}"):
            call()
    assert values.eq(1).all()


def test_planes_on_another_device_are_named():
    elsewhere, values = GOOD.to("meta"), torch.ones(9)
    for argument, call in {
        "out": lambda: pack_signs(values, elsewhere),
        "zeros": lambda: unpack_signs(GOOD, 9, zeros=elsewhere),
        "packed": lambda: add_signs_(values, elsewhere, 0.1),
    }.items():
        with pytest.raises(ValueError, match=f"^{argument} is on meta, .*cpu"):
            call()


@pytest.mark.parametrize("values", [torch.arange(9), torch.ones(9) * 1j, torch.ones(9).to_sparse()])
def test_values_without_signs_are_named(values):
    for argument, call in {
        "values": lambda: pack_signs(values),
        "values ": lambda: pack_signs_and_abstentions(values),
        "target": lambda: add_signs_(values, GOOD, 0.1),
    }.items():
        with pytest.raises(TypeError, match=f"^{argument.strip()} (has dtype|is sparse)"):
            call()


def test_bad_results_are_named():
    with pytest.raises(TypeError, match=r"^dtype .*int32"):
        unpack_signs(GOOD, 9, torch.int32)
    with pytest.raises(ValueError, match=r"^numel must not be negative, got -1"):
        unpack_signs(GOOD, -1)
