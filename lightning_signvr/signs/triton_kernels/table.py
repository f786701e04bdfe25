"""Where many tensors lie, for kernels that work on all of them in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import triton.language as tl
from torch import Tensor

BLOCK = 4096
"""Elements that one program of a kernel works on."""


@dataclass(frozen=True)
class Table:
    """Tensors of some sizes, cut into blocks of which each lies in one tensor.

    Attributes:
        blocks: int32, ``[programs, 2]``, the tensor of each block and the block's number in it.
        numels: int64, ``[tensors]``.
        offsets: int64, ``[tensors]``, the byte of a plane at which each tensor's bits begin.
        programs: number of blocks.
    """

    blocks: Tensor
    numels: Tensor
    offsets: Tensor
    programs: int


# What is cached is not changed any more, and is of one stream: memory that falls out of the cache is reused
# in the order of that stream, after the kernels that read it.


def table_of(numels: Sequence[int], offsets: Sequence[int], device: torch.device) -> Table:
    """The table of tensors with ``numels`` elements; kept for the next step."""
    return _table(tuple(numels), tuple(offsets), device, _stream(device))


def addresses(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """int64 tensor of where the tensors' memory begins; kept as long as it does not change."""
    return _upload(tuple(tensor.data_ptr() for tensor in tensors), device, _stream(device))


def aligned(*groups: Sequence[Tensor]) -> bool:
    """Whether all tensors begin at a multiple of 16 bytes, so that many bytes can be read at once."""
    return all(tensor.data_ptr() % 16 == 0 for group in groups for tensor in group)


def dtype_of(tensor: Tensor) -> Any:
    """The tensor's dtype as Triton calls it."""
    return _DTYPES[tensor.dtype]


_DTYPES = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


@lru_cache(maxsize=64)
def _table(numels: tuple[int, ...], offsets: tuple[int, ...], device: torch.device, stream: int) -> Table:
    counts = -(-np.array(numels, np.int64) // BLOCK)
    tensors = np.repeat(np.arange(len(numels)), counts)
    firsts = np.cumsum(counts) - counts
    blocks = np.stack([tensors, np.arange(len(tensors)) - np.repeat(firsts, counts)], 1).astype(np.int32)
    return Table(
        _to_device(torch.from_numpy(blocks), device),
        _upload(numels, device, stream),
        _upload(offsets, device, stream),
        len(blocks),
    )


@lru_cache(maxsize=256)
def _upload(numbers: tuple[int, ...], device: torch.device, stream: int) -> Tensor:
    return _to_device(torch.tensor(numbers, dtype=torch.int64), device)


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)  # does not wait for the device


def _stream(device: torch.device) -> int:
    return 0 if device.type == "cpu" else torch.cuda.current_stream(device).cuda_stream
