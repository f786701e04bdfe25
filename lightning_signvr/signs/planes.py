"""Small numbers as bit planes: bit ``k`` of every coordinate's number lies packed in plane ``k``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_signvr.signs.oracle import bits_to_bytes, bytes_to_bits

Bits = npt.NDArray[np.uint8]


def add(rows: Sequence[Bits] | Bits) -> list[Bits]:
    """Planes, lowest first, of the number of ones in each column of ``rows``: carry-save adders."""
    planes: list[Bits] = []
    pending: list[Any] = list(rows)
    while pending:
        carries = []
        while len(pending) > 1:
            if len(pending) > 2:  # a full adder: three bits of one weight make a sum and a carry
                a, b, c = pending.pop(), pending.pop(), pending.pop()
                half = a ^ b
                pending.append(half ^ c)
                carries.append((a & b) | (half & c))
            else:
                a, b = pending.pop(), pending.pop()
                pending.append(a ^ b)
                carries.append(a & b)
        planes.append(pending[0])
        pending = carries
    return planes


def ones(plane: Bits) -> int:
    """Number of bits that are set."""
    words = plane[: len(plane) // 8 * 8].view(np.uint64) if plane.flags.c_contiguous else plane[:0]
    rest = plane[words.nbytes :]
    return int(np.bitwise_count(words).sum(dtype=np.int64) + np.bitwise_count(rest).sum(dtype=np.int64))


def count_ones(plane: Tensor) -> int:
    """Number of bits that are set in a uint8 tensor.

    Example:
        >>> count_ones(torch.tensor([3, 255], dtype=torch.uint8))
        10
    """
    if plane.device.type == "cpu":
        return ones(plane.contiguous().view(-1).numpy())
    pairs = plane - (plane >> 1 & 0x55)
    nibbles = (pairs & 0x33) + (pairs >> 2 & 0x33)
    return int((nibbles + (nibbles >> 4) & 0x0F).sum())


def count_planes(rows: Tensor) -> Tensor:
    """In how many rows each bit is set, as bit planes.

    Args:
        rows: uint8, ``[m, bytes]``, m at least 1.

    Returns:
        uint8, ``[m.bit_length(), bytes]``, the lowest bit first.

    Example:
        >>> count_planes(torch.tensor([[0b11], [0b01], [0b01]], dtype=torch.uint8))  # 3 and 1
        tensor([[3],
                [1]], dtype=torch.uint8)
    """
    if rows.device.type == "cpu":
        return torch.from_numpy(np.stack(add(rows.numpy())))
    numel = rows.shape[1] * 8
    numbers = bytes_to_bits(rows.reshape(-1), rows.numel() * 8).view(rows.shape[0], numel).sum(0)
    return torch.stack([bits_to_bytes(numbers >> k & 1 == 1) for k in range(rows.shape[0].bit_length())])


def read_planes(planes: Tensor, numel: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The numbers in the planes ``[k, bytes]``, as a tensor of ``numel`` elements.

    Example:
        >>> read_planes(torch.tensor([[0b11], [0b01]], dtype=torch.uint8), 3)
        tensor([3., 1., 0.])
    """
    total = torch.zeros(numel, dtype=dtype, device=planes.device)
    for weight, plane in enumerate(planes):
        if plane.device.type == "cpu":
            bits = torch.from_numpy(np.unpackbits(plane.numpy(), count=numel, bitorder="little"))
        else:
            bits = bytes_to_bits(plane, numel)
        total.add_(bits, alpha=1 << weight)
    return total
