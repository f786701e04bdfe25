"""Random bits that depend on (seed, step, stream) and position alone.

Philox is counter-based: any range of a stream can be drawn by itself, on any rank, after any
resume, and is the same bits. The global generators of Python, NumPy and torch are never used.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_BLOCK = 32  # bytes that one value of Philox' counter yields


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
    counter = np.array([first, step, 0, 0], np.uint64)
    generator = np.random.Philox(key=np.array([seed, stream], np.uint64), counter=counter)
    blocks = -(-stop // _BLOCK) - first
    words = generator.random_raw(blocks * _BLOCK // 8).astype("<u8", copy=False)
    return torch.from_numpy(words.view(np.uint8)[start - first * _BLOCK : stop - first * _BLOCK]).to(device)
