"""CPU kernels: NumPy on the memory of torch tensors, in blocks that stay in the cache.

torch has no bit packing on CPU, and its comparison kernels write a full boolean tensor to
memory; the block buffers here are reused, so that a tensor is read once and an eighth of a
byte per element is written. Each kernel equals its namesake in
:mod:`lightning_signvr.signs.oracle` bit for bit.
"""

from __future__ import annotations

import threading
from functools import lru_cache
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
        self.mask = np.empty(BLOCK * 8, np.uint8)


_buffers = _Buffers()


def _as_array(values: Tensor) -> Array:
    if values.dtype in _NEGATIVE_INFINITY:
        return values.view(torch.int16).numpy().view(np.uint16)
    return values.numpy()


def _find_negative(block: Array, dtype: torch.dtype, out: Array) -> None:
    if dtype not in _NEGATIVE_INFINITY:
        np.less(block, 0, out=out)
        return
    words = _buffers.words[: len(block)]
    np.subtract(block, np.uint16(0x8001), out=words)  # wraps around: every other number becomes larger
    np.less_equal(words, np.uint16(_NEGATIVE_INFINITY[dtype] - 0x8001), out=out)


def _find_signed(block: Array, negative: Array, dtype: torch.dtype, out: Array) -> None:
    """The complement of the abstentions; ``negative`` is what :func:`_find_negative` gave."""
    if dtype not in _NEGATIVE_INFINITY:
        np.greater(block, 0, out=out)
        np.logical_or(negative, out, out=out)
        return
    words = _buffers.words[: len(block)]
    np.bitwise_and(block, np.uint16(0x7FFF), out=words)
    np.subtract(words, np.uint16(1), out=words)  # 0 wraps around to the largest number
    np.less(words, np.uint16(_NEGATIVE_INFINITY[dtype] & 0x7FFF), out=out)


def pack(values: Tensor, negative: Tensor, abstaining: Tensor | None) -> bool:
    """See :func:`lightning_signvr.signs.oracle.pack`."""
    source, bits = _as_array(values), negative.numpy()
    missing = None if abstaining is None else abstaining.numpy()
    found = False
    for start in range(0, len(source), BLOCK):
        block = source[start : start + BLOCK]
        first, stop = start // 8, (start + len(block) + 7) // 8
        is_negative = _buffers.first[: len(block)]
        _find_negative(block, values.dtype, is_negative)
        bits[first:stop] = np.packbits(is_negative, bitorder="little")
        if missing is None:
            continue
        signed = _buffers.second[: len(block)]
        _find_signed(block, is_negative, values.dtype, signed)
        if signed.all():
            missing[first:stop] = 0
        else:
            found = True
            missing[first:stop] = np.packbits(np.logical_not(signed, out=signed), bitorder="little")
    return found


@lru_cache(maxsize=16)
def _sign_table(dtype: torch.dtype, alpha: float) -> Array:
    """``[256, 8]``: what the eight signs of each byte add, in the bits of ``dtype``."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return _as_array(torch.from_numpy(1.0 - 2.0 * bits).mul_(alpha).to(dtype))


@lru_cache(maxsize=4)
def _keep_table(itemsize: int) -> Array:
    """``[256, 8]``: all ones where the bit is 0, zero where it is 1, to be and-ed with signs."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return (bits.astype(f"u{itemsize}") - 1).astype(f"u{itemsize}")


def _look_up(table: Array, packed: Array, out: Array) -> Array:
    rows = out.view(table.dtype)[: len(packed) * 8].reshape(-1, 8)
    indices = _buffers.indices[: len(packed)]
    indices[:] = packed
    return np.take(table, indices, axis=0, out=rows, mode="wrap").reshape(-1)  # "raise" would buffer


def _look_up_signs(negative: Array, zero: Array | None, dtype: torch.dtype, alpha: float) -> Array:
    signs = _look_up(_sign_table(dtype, alpha), negative, _buffers.signs)
    if zero is not None and zero.any():
        words = signs.view(f"u{signs.itemsize}")
        np.bitwise_and(words, _look_up(_keep_table(signs.itemsize), zero, _buffers.mask), out=words)
    return signs


def unpack(negative: Tensor, zero: Tensor | None, numel: int, dtype: torch.dtype) -> Tensor:
    """See :func:`lightning_signvr.signs.oracle.unpack`."""
    result = torch.empty(numel, dtype=dtype)
    target, bits = _as_array(result), negative.numpy()
    zeros = None if zero is None else zero.numpy()
    for start in range(0, numel, BLOCK):
        part = slice(start // 8, (min(start + BLOCK, numel) + 7) // 8)
        signs = _look_up_signs(bits[part], None if zeros is None else zeros[part], dtype, 1.0)
        block = target[start : start + BLOCK]
        block[:] = signs[: len(block)]
    return result


def add_signs(target: Tensor, negative: Tensor, zero: Tensor | None, alpha: float, decay: float) -> None:
    """See :func:`lightning_signvr.signs.oracle.add_signs`."""
    bits, zeros = negative.numpy(), None if zero is None else zero.numpy()
    low_precision = target.dtype in _NEGATIVE_INFINITY
    array = None if low_precision else target.numpy()
    scale = 1.0 if low_precision else alpha  # 16-bit sums are torch's, which rounds once at the end
    for start in range(0, target.numel(), BLOCK):
        stop = min(start + BLOCK, target.numel())
        part = slice(start // 8, (stop + 7) // 8)
        signs = _look_up_signs(bits[part], None if zeros is None else zeros[part], target.dtype, scale)
        terms = signs[: stop - start]
        if array is None:
            block = target[start:stop]
            if decay != 1.0:
                block.mul_(decay)
            block.add_(torch.from_numpy(terms.view(np.int16)).view(target.dtype), alpha=alpha)
        else:
            numbers = array[start:stop]
            if decay != 1.0:
                np.multiply(numbers, numbers.dtype.type(decay), out=numbers)
            np.add(numbers, terms, out=numbers)
