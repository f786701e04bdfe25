"""Numbers in memory and in registers, and a row of eight bits for each byte."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def element_pointer(table, index, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):  # noqa: N803
    """Where tensor ``index`` of a table of addresses begins."""
    pointer = tl.load(table + index).to(tl.pointer_type(DTYPE))
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer


@triton.jit
def read(pointers, inside, MASKED: tl.constexpr):  # noqa: N803
    """What is stored; 0 outside."""
    if MASKED:
        return tl.load(pointers, mask=inside, other=0)
    else:
        return tl.load(pointers)


@triton.jit
def write(pointers, values, inside, MASKED: tl.constexpr):  # noqa: N803
    """Store what is inside."""
    if MASKED:
        tl.store(pointers, values, mask=inside)
    else:
        tl.store(pointers, values)


@triton.jit
def widen(stored):
    """Float16 and bfloat16 as float32, exactly; the others as they are.

    A bfloat16 is the upper half of a float32. That is said by its bits here, since Triton's interpreter does
    not convert denormal numbers well.
    """
    if stored.dtype == tl.bfloat16:
        bits = stored.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        return bits.to(tl.float32, bitcast=True)
    elif stored.dtype == tl.float16:
        return stored.to(tl.float32)
    else:
        return stored


@triton.jit
def narrow(number, DTYPE: tl.constexpr):  # noqa: N803
    """``number`` rounded to ``DTYPE`` as torch does: to the nearest, and to even between two."""
    if DTYPE == tl.bfloat16:  # noqa: SIM300
        bits = number.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(number == number, rounded, 0x7FC0)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return number.to(DTYPE)


@triton.jit
def scalar(value, like):
    """A float64 argument rounded to the dtype of ``like``, as torch does with a Python number."""
    return tl.full((1, 1), value, tl.float64).to(like.dtype)


@triton.jit
def positions(first, BLOCK: tl.constexpr):  # noqa: N803
    """Of ``BLOCK`` elements from ``first`` on, eight in a row."""
    return first + tl.arange(0, BLOCK // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]


@triton.jit
def to_bytes(bits):
    """Each row of eight numbers, 0 or 1, as the bits of one, the first as the lowest.

    Where a number is 256, it is bit 0 of the second byte, and so on.
    """
    return tl.sum(bits << tl.arange(0, 8)[None, :], 1)


@triton.jit
def to_bits(packed):
    """Each byte as a row of eight booleans."""
    return (packed.to(tl.int32)[:, None] >> tl.arange(0, 8)[None, :]) & 1 != 0
