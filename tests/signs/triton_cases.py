"""Triton's kernels equal the oracle bit for bit, on CUDA or on the CPU in Triton's interpreter.

``test_triton_kernels.py`` runs this file in a process of its own, since the interpreter is switched on
before Triton is first imported. On a machine with a GPU: ``pytest tests/signs/triton_cases.py``.
"""

from __future__ import annotations

import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_signvr.signs import (
    CorrectedAverage,
    MovingAverage,
    Recursive,
    add_signs_,
    add_signs_all_,
    count_ones,
    dispatch,
    majority,
    numpy_kernels,
    oracle,
    pack_all,
    pack_signs,
    pack_signs_and_abstentions,
    packed_size,
    random_bytes,
    random_uniform,
    unpack_signs,
)
from lightning_signvr.signs.tally import oracle_majority
from tests.signs.test_codec import layouts, tensors
from tests.signs.values import DTYPES, bits_of, special_values

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda:0")
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs TRITON_INTERPRET=1 or a GPU", allow_module_level=True)
if INTERPRETED:
    dispatch.TRITON_DEVICES.add("cpu")

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NaN, in NumPy

BLOCK = 4096
SIZES = (0, 1, 7, 8, 9, 63, 64, 65, 1000, BLOCK, 2 * BLOCK + 9)
DECAYS = (1.0, 0.9997, 0.0)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(numel: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Random numbers among which the special ones are, too."""
    values = torch.randn(numel, generator=generator(seed), dtype=torch.float64).to(dtype)
    special = special_values(dtype)[: numel // 2]
    values[: 2 * len(special) : 2] = special
    return values.to(DEVICE)


def plane(numel: int, seed: int) -> torch.Tensor:
    size = packed_size(numel)
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator(seed)).to(DEVICE)


def same(first: torch.Tensor, second: torch.Tensor) -> None:
    """Bit for bit, but that one NaN is as good as another."""
    nan = torch.isnan(first)
    assert torch.equal(nan, torch.isnan(second))
    assert bits_of(first.masked_fill(nan, 0)) == bits_of(second.masked_fill(nan, 0))


def oracle_pack(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, bool]:
    negative, abstaining = torch.empty(2, packed_size(values.numel()), dtype=torch.uint8, device=DEVICE)
    return negative, abstaining, bool(oracle.pack(values.detach().reshape(-1), negative, abstaining))


def test_the_kernels_are_tritons():
    assert dispatch.kernels_of(DEVICE).__name__.endswith("triton_kernels")


# -- one tensor -----------------------------------------------------------------------------------


def check_packing(values):
    expected = oracle_pack(values)
    negative, abstaining, found = pack_signs_and_abstentions(values)
    assert torch.equal(negative, expected[0])
    assert torch.equal(abstaining, expected[1])
    assert found == expected[2]
    assert torch.equal(pack_signs(values), expected[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_packing(dtype):
    for numel in SIZES:
        check_packing(numbers(numel, dtype))


@given(tensors())
@settings(max_examples=25, deadline=None)
def test_packing_of_any_bits(values):
    check_packing(values.to(DEVICE))


@pytest.mark.parametrize("name", layouts())
def test_packing_of_any_layout(name):
    check_packing(layouts()[name].to(DEVICE))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", DECAYS)
def test_adding_and_unpacking(dtype, decay):
    for numel in SIZES:
        signs, zeros = plane(numel, 1), plane(numel, 2)
        for undecided in (None, zeros):
            before = numbers(numel, dtype)
            fast, slow = before.clone(), before.clone()
            add_signs_(fast, signs, -0.01, zeros=undecided, decay=decay)
            oracle.add_signs(slow, signs, undecided, -0.01, decay)
            same(fast, slow)
            if decay == 1.0:
                unpacked = unpack_signs(signs, numel, dtype, undecided)
                assert bits_of(unpacked) == bits_of(oracle.unpack(signs, undecided, numel, dtype))


@given(tensors(), st.floats(-10, 10), st.sampled_from([*DECAYS, 0.5]), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_adding_to_any_bits(target, alpha, decay, seed):
    signs, zeros = plane(target.numel(), seed), plane(target.numel(), seed + 1)
    fast, slow = target.clone().to(DEVICE), target.clone().to(DEVICE)
    add_signs_(fast, signs, alpha, zeros=zeros, decay=decay)
    oracle.add_signs(slow, signs, zeros, alpha, decay)
    same(fast, slow)
    on_cpu = target.clone()
    plane_of_zeros = zeros.cpu()
    numpy_kernels.add_signs(on_cpu, signs.cpu(), plane_of_zeros, alpha, decay)
    same(fast.cpu(), on_cpu)  # no sum is fused with a product here: equal on all devices


def test_adding_respects_the_layout():
    for name, target in layouts().items():
        if name != "expanded":
            target = target.detach().to(DEVICE)
            expected = target.clone()
            signs = plane(target.numel(), 3)
            add_signs_(target, signs, 0.25)
            expected += 0.25 * unpack_signs(signs, target.numel()).view(target.shape)
            assert torch.equal(target, expected), name


# -- many tensors ---------------------------------------------------------------------------------

NUMELS = (9, 0, 4097, 8, 1, 8192, 63)


def offsets_of(numels):
    """Where planes of the tensors begin, with gaps between them, and the size of it all."""
    offsets, size = [], 3
    for numel in numels:
        offsets.append(size)
        size += packed_size(numel) + 2
    return offsets, size


def check_many(make):
    """``make`` returns directions, always the same; all together as one by one."""
    directions, twins = make(), make()
    offsets, size = offsets_of([direction_numel(direction) for direction in directions])
    negative, abstaining = torch.full((2, size), 0xAA, dtype=torch.uint8, device=DEVICE)
    found = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    pack_all(directions, negative, offsets, abstaining, found)
    signs_alone = torch.full_like(negative, 0xAA)
    pack_all([t if isinstance(t, torch.Tensor) else t.compute_() for t in make()], signs_alone, offsets)
    expected = torch.full((2, size), 0xAA, dtype=torch.uint8, device=DEVICE)
    some = False
    for direction, twin, offset in zip(directions, twins, offsets, strict=True):
        values = twin
        if not isinstance(twin, torch.Tensor):
            values = twin.compute_()
            same(direction.state, values)
        part = slice(offset, offset + packed_size(values.numel()))
        expected[0, part], expected[1, part], one = oracle_pack(values)
        some |= one
    assert torch.equal(negative, expected[0])  # nothing between them
    assert torch.equal(abstaining, expected[1])
    assert torch.equal(signs_alone, expected[0])
    assert found.item() == some


def direction_numel(direction):
    return (direction if isinstance(direction, torch.Tensor) else direction.state).numel()


def test_packing_many_of_several_kinds():
    def make():
        values = [numbers(numel, DTYPES[k % 4], k) for k, numel in enumerate(NUMELS * 2)]
        return [*values, numbers(40, torch.float32).view(5, 8).t(), numbers(33, torch.float32)[1:]]

    check_many(make)
    check_many(lambda: [torch.ones(9, device=DEVICE), -torch.ones(7, device=DEVICE)])  # no zeros
    check_many(lambda: [torch.ones(0, device=DEVICE)])
    check_many(lambda: [])


def recipe(kind, dtype, numel, seed):
    """One whose numbers do not come out even, so that a rounding too many or too few shows."""
    wide = torch.promote_types(dtype, torch.float32)
    state, gradient, last = (numbers(numel, which, seed + k) for k, which in enumerate((wide, dtype, dtype)))
    if kind is MovingAverage:
        return MovingAverage(state, gradient, 0.9, 1 - 0.9)
    if kind is Recursive:
        return Recursive(state, gradient, 1 - 0.1, last)
    return CorrectedAverage(state, gradient, 1 - 0.1, 0.1, last, 0.025 * (1 - 0.1))


@pytest.mark.parametrize("kind", [MovingAverage, Recursive, CorrectedAverage])
@pytest.mark.parametrize("dtype", DTYPES)
def test_estimates_of_many(kind, dtype):
    check_many(lambda: [recipe(kind, dtype, numel, numel) for numel in NUMELS])


def test_estimates_that_no_kernel_makes():
    def make():
        strange = recipe(MovingAverage, torch.float32, 40, 0)
        matrix = strange.state.view(5, 8).t()
        half_state = numbers(40, torch.float16)
        return [
            MovingAverage(matrix, strange.gradient.view(8, 5), 0.9, 0.1),
            MovingAverage(half_state, half_state.clone(), 0.9, 0.1),
            recipe(MovingAverage, torch.float32, 40, 1),
            recipe(Recursive, torch.float32, 40, 1),
        ]

    check_many(make)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("with_copies", [False, True], ids=["in place", "with copies"])
def test_adding_to_many(decay, with_copies):
    def make():
        targets = [numbers(numel, DTYPES[k % 4], k) for k, numel in enumerate(NUMELS * 2)]
        return [*targets, numbers(40, torch.float32).view(5, 8).t(), numbers(33, torch.float32)[1:]]

    targets, expected = make(), make()
    offsets, size = offsets_of([target.numel() for target in targets])
    signs, zeros = plane(8 * size, 1), plane(8 * size, 2)
    copies = [torch.full_like(target, 3) for target in targets] if with_copies else None
    add_signs_all_(targets, signs, offsets, -0.01, zeros=zeros, decay=decay, copies=copies)
    for index, (offset, target) in enumerate(zip(offsets, expected, strict=True)):
        if copies is not None:
            assert bits_of(copies[index]) == bits_of(target)
        part = slice(offset, offset + packed_size(target.numel()))
        flat = target.reshape(-1)
        oracle.add_signs(flat, signs[part], zeros[part], -0.01, decay)
        same(targets[index], flat.view(target.shape))


def test_planes_that_are_too_small_are_named():
    values, plane = [torch.ones(9, device=DEVICE)], torch.zeros(3, dtype=torch.uint8, device=DEVICE)
    for call in (
        lambda: pack_all(values, plane, [2]),
        lambda: add_signs_all_(values, plane, [-1], 0.1),
    ):
        with pytest.raises(ValueError, match=r"^offsets\[0\] is (2|-1), but 2 bytes"):
            call()
    with pytest.raises(ValueError, match=r"^found and abstaining"):
        pack_all(values, plane, [0], plane)
    with pytest.raises(TypeError, match=r"^directions\[0\] has dtype int64"):
        pack_all([torch.ones(9, device=DEVICE).long()], plane, [0])


# -- votes and random bits ------------------------------------------------------------------------


@pytest.mark.parametrize("voters", [1, 2, 3, 4, 5, 8, 33])
def test_tallies(voters):
    for size in (0, 1, 41, 1033) if voters < 8 else (41,):
        wide = torch.randint(0, 256, (3, voters, size + 5), dtype=torch.uint8, generator=generator(size))
        rows, first, second = (each[:, 5:] for each in wide.to(DEVICE))
        for absent in (None, first & second, first | second):
            fast, slow = majority(rows, absent), oracle_majority(rows, absent)
            assert fast.counts == slow.counts
            for name in ("negative", "tied", "silent"):
                one, other = getattr(fast, name), getattr(slow, name)
                assert one is other is None or torch.equal(one, other)


def test_random_bits_are_those_of_the_cpu():
    top = 2**64 - 1
    keys = [(0, 0, 0), (top, top, top), (10**9 + 7, 5, 2**63)]
    fast = [random_bytes(*key, 37, 10_000, DEVICE) for key in keys]
    fast_numbers = [random_uniform(*key, 2**40, 1000, DEVICE, start=8 * 77) for key in keys]
    assert random_bytes(0, 0, 0, 7, 7, DEVICE).numel() == random_uniform(0, 0, 0, 0, 0, DEVICE).numel() == 0
    before = set(dispatch.TRITON_DEVICES)
    dispatch.TRITON_DEVICES.clear()
    try:
        for key, mine, floats in zip(keys, fast, fast_numbers, strict=True):
            assert torch.equal(mine.cpu(), random_bytes(*key, 37, 10_000))
            assert torch.equal(floats.cpu(), random_uniform(*key, 2**40, 1000, start=8 * 77))
    finally:
        dispatch.TRITON_DEVICES.update(before)


def test_ones_are_counted():
    bits = plane(8 * 1001, 0)
    assert count_ones(bits) == sum(byte.bit_count() for byte in bits.tolist())


def test_infinite_and_tiny_steps():
    for alpha in (math.inf, 1e-45, 0.0, -0.0):
        fast, slow = numbers(64, torch.float32), numbers(64, torch.float32)
        add_signs_(fast, plane(64, 1), alpha, decay=0.9)
        oracle.add_signs(slow, plane(64, 1), None, alpha, 0.9)
        same(fast, slow)
