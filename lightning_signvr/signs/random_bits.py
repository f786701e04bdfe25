"""Random bits that depend on (seed, step, stream) and position alone.

Philox is counter-based: any range of a stream can be drawn by itself, on any rank, after any
resume, and is the same bits. The global generators of Python, NumPy and torch are never used.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_signvr.signs.dispatch import triton_kernels

_BLOCK = 32  # bytes that one value of Philox' counter yields
_NUMBERS = _BLOCK // 4  # uniform numbers made of them


def random_bytes(
    seed: int, step: int, stream: int, start: int, stop: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Bytes ``start`` to ``stop`` of the fair random bits of a stream at a step.

    Args:
        seed: of the whole run, 0 to 2**64 - 1.
        step: number of the step, 0 to 2**64 - 1.
        stream: what the bits are for, so that two uses never share bits.
        start, stop: range in the stream, in bytes.
        device: of the result; the bits do not depend on it.

    Returns:
        uint8 tensor, ``[stop - start]``.

    Example:
        >>> whole = random_bytes(0, 7, 1, 0, 100)
        >>> bool((random_bytes(0, 7, 1, 40, 100) == whole[40:]).all())
        True
    """
    first = start // _BLOCK
    words = _words(seed, stream, (first, step, 0), -(-stop // _BLOCK) - first, torch.device(device))
    return words.view(torch.uint8)[start - first * _BLOCK : stop - first * _BLOCK]


def random_uniform(
    seed: int,
    step: int,
    stream: int,
    index: int,
    numel: int,
    device: torch.device | str = "cpu",
    start: int = 0,
) -> Tensor:
    """Uniform numbers in [-1, 1) for one tensor, a function of the key alone.

    Philox with key ``(seed, stream)`` begins at counter ``(start / 8, step, index, 0)``, so that two tensors
    never share numbers. Each of its 64-bit words gives two numbers, from its low half and then from its
    high half. A half read as a signed integer ``w`` becomes ``((w >> 7) | 1) / 2**24``: one of the
    ``2**24`` odd multiples of ``2**-24`` between -1 and 1, all equally likely. They are exact in float32
    and symmetric about 0, which is not among them; ``u > -a`` has probability ``(1 + a) / 2`` to within
    ``2**-25``, and exactly for every multiple ``a`` of ``2**-23``.

    Args:
        seed: of the whole run, 0 to 2**64 - 1.
        step: number of the step, 0 to 2**64 - 1.
        stream: what the numbers are for; not one whose :func:`random_bytes` are used (those are the
            same words as of ``index`` 0).
        index: number of the tensor, 0 to 2**64 - 1.
        numel: how many. Fewer are the first ones of more.
        device: of the result; the numbers do not depend on it.
        start: how many of the tensor's numbers to leave out, a multiple of 8.

    Returns:
        float32 tensor, ``[numel]``.

    Example:
        >>> numbers = random_uniform(seed=0, step=7, stream=1, index=2, numel=1000)
        >>> bool(numbers.abs().max() < 1), bool(numbers.mean().abs() < 0.05)
        (True, True)
    """
    counter = (start // _NUMBERS, step, index)
    words = _words(seed, stream, counter, -(-numel // _NUMBERS), torch.device(device))
    odd = words.view(torch.int32)[:numel].bitwise_right_shift_(7).bitwise_or_(1)
    return odd.to(torch.float32).mul_(2.0**-24)


def _words(
    seed: int, stream: int, counter: tuple[int, int, int], blocks: int, device: torch.device
) -> Tensor:
    """int64, ``[4 * blocks]``: what Philox draws from a counter on, drawn by the device where it can."""
    if blocks == 0:  # NumPy gives an empty array a stride that torch cannot view
        return torch.empty(0, dtype=torch.int64, device=device)
    kernels = triton_kernels(device)
    if kernels is not None:
        words: Tensor = kernels.random_words(seed, stream, counter, blocks, device)
        return words
    start = np.array([*counter, 0], np.uint64)
    generator = np.random.Philox(key=np.array([seed, stream], np.uint64), counter=start)
    return torch.from_numpy(generator.random_raw(4 * blocks).view(np.int64)).to(device)
