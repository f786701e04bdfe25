"""CPU kernels: NumPy on the memory of torch tensors, in blocks that stay in the cache.

torch has no bit packing on CPU, and its comparison kernels write a full boolean tensor to
memory; the block buffers here are reused, so that a tensor is read once and an eighth of a
byte per element is written. Each kernel equals its namesake in
:mod:`lightning_signvr.signs.oracle` bit for bit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

BLOCK = 128 * 1024  # elements: 512 KiB of float32, which is the best of 16 Ki to 256 Ki where measured

Array = npt.NDArray[Any]

# 16-bit floats are compared as integers (NumPy has no bfloat16 and emulates float16): the bits of
# -inf, below which, down to the smallest denormal -0x8001, lie all negative numbers that are not NaN
_NEGATIVE_INFINITY = {torch.bfloat16: 0xFF80, torch.float16: 0xFC00}


class _Buffers(threading.local):
    """Work space of one thread, allocated once."""

    def __init__(self) -> None:
        self.first = np.empty(BLOCK, np.bool_)
        self.second = np.empty(BLOCK, np.bool_)
        self.words = np.empty(BLOCK, np.uint16)
        self.indices = np.empty(BLOCK // 8, np.intp)
        self.signs = np.empty(BLOCK * 8, np.uint8)  # viewed as the dtype in use, at most 8 bytes each
        self.masks = np.empty(BLOCK * 8, np.uint8)


_buffers = _Buffers()


def _as_array(values: Tensor) -> Array:
    if values.dtype in _NEGATIVE_INFINITY:
        return values.view(torch.int16).numpy().view(np.uint16)
    return values.numpy()


Comparison = Callable[[Array, Array], Any]
"""Writes into its second argument, a boolean array, what holds for the numbers in the first."""


def _comparisons(dtype: torch.dtype) -> tuple[Comparison, Comparison]:
    """Where numbers are negative, and where they are positive."""
    if dtype in _NEGATIVE_INFINITY:
        lowest = _NEGATIVE_INFINITY[dtype]
        return partial(_between, 0x8001, lowest), partial(_between, 0x0001, lowest & 0x7FFF)
    zero = torch.zeros((), dtype=dtype).numpy()[()]  # of the numbers' own dtype: nothing to convert
    return lambda block, out: np.less(block, zero, out), lambda block, out: np.greater(block, zero, out)


def _between(first: int, last: int, block: Array, out: Array) -> None:
    words = _buffers.words[: len(block)]
    np.subtract(block, np.uint16(first), words)  # wraps around: what is below becomes larger than all
    np.less_equal(words, np.uint16(last - first), out)


def pack(values: Tensor, negative: Tensor, abstaining: Tensor | None) -> bool:
    """See :func:`lightning_signvr.signs.oracle.pack`."""
    source, bits = _as_array(values), negative.numpy()
    missing = None if abstaining is None else abstaining.numpy()
    find_negative, find_positive = _comparisons(values.dtype)
    found = False
    for start in range(0, len(source), BLOCK):
        block = source[start : start + BLOCK]
        part = slice(start // 8, (start + BLOCK) // 8)
        is_negative, signed = _buffers.first[: len(block)], _buffers.second[: len(block)]
        find_negative(block, is_negative)
        if missing is None:
            bits[part] = np.packbits(is_negative, None, "little")
            continue
        find_positive(block, signed)  # at once, while the block is in the cache
        bits[part] = np.packbits(is_negative, None, "little")
        np.logical_or(is_negative, signed, signed)
        if signed.all():
            missing[part] = 0
        else:
            found = True
            missing[part] = np.packbits(np.logical_not(signed, signed), None, "little")
    return found


@lru_cache(maxsize=16)
def _sign_table(dtype: torch.dtype, alpha: float) -> Array:
    """``[256, 8]``: what the eight signs of each byte add, in the bits of ``dtype``."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return _as_array(torch.from_numpy(1.0 - 2.0 * bits).mul_(alpha).to(dtype))


@lru_cache(maxsize=4)
def _keep_table(itemsize: int) -> Array:
    """``[256, 8]``: all ones where the bit is 0, only the sign bit where it is 1; for and-ing."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    unsigned = np.dtype(f"u{itemsize}")
    return np.where(bits == 1, unsigned.type(1 << (8 * itemsize - 1)), np.iinfo(unsigned).max)


def _signs(
    negative: Tensor, zero: Tensor | None, numel: int, dtype: torch.dtype, alpha: float, zero_bit: bool
) -> Iterator[tuple[slice, Array]]:
    """Positions of each block and ``alpha`` times its signs, in memory that the next block reuses.

    Where the bit of ``zero`` is set it is 0, with the sign that ``alpha`` times the sign of
    ``zero_bit`` would have.
    """
    bits, zeros = negative.numpy(), None if zero is None else zero.numpy()
    table = _sign_table(dtype, alpha)
    keep = _keep_table(table.itemsize)
    signs = _buffers.signs.view(table.dtype)[:BLOCK]
    rows, words = signs.reshape(-1, 8), signs.view(keep.dtype).reshape(-1, 8)
    masks = _buffers.masks.view(keep.dtype)[:BLOCK].reshape(-1, 8)
    for start in range(0, numel, BLOCK):
        part = slice(start // 8, (start + BLOCK) // 8)
        against = bits[part]
        size = len(against)
        indices = _buffers.indices[:size]
        absent = None if zeros is None or not zeros[part].any() else zeros[part]
        if absent is not None:
            against = against | absent if zero_bit else against & ~absent
        indices[:] = against
        table.take(indices, 0, rows[:size], "wrap")  # "raise" would buffer
        if absent is not None:
            indices[:] = absent
            keep.take(indices, 0, masks[:size], "wrap")
            np.bitwise_and(words[:size], masks[:size], out=words[:size])
        yield slice(start, start + BLOCK), signs[: numel - start]


def unpack(negative: Tensor, zero: Tensor | None, numel: int, dtype: torch.dtype) -> Tensor:
    """See :func:`lightning_signvr.signs.oracle.unpack`."""
    result = torch.empty(numel, dtype=dtype)
    target = _as_array(result)
    for block, signs in _signs(negative, zero, numel, dtype, 1.0, zero_bit=False):
        target[block] = signs
    return result


def add_signs(target: Tensor, negative: Tensor, zero: Tensor | None, alpha: float, decay: float) -> None:
    """See :func:`lightning_signvr.signs.oracle.add_signs`."""
    low_precision = target.dtype in _NEGATIVE_INFINITY
    array = None if low_precision else target.numpy()
    scale = 1.0 if low_precision else alpha  # 16-bit sums are torch's, which rounds once at the end
    # what is added where nothing moves must be -0.0: only that leaves 0.0 and -0.0 as they are
    zero_bit = alpha >= 0
    for block, signs in _signs(negative, zero, target.numel(), target.dtype, scale, zero_bit):
        if array is None:
            if decay != 1.0:
                target[block].mul_(decay)
            target[block].add_(torch.from_numpy(signs.view(np.int16)).view(target.dtype), alpha=alpha)
        else:
            numbers = array[block]
            if decay != 1.0:
                np.multiply(numbers, numbers.dtype.type(decay), out=numbers)
            np.add(numbers, signs, out=numbers)
