"""Values that matter to signs, and the definition of their signs in plain Python."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def special_values(dtype: torch.dtype) -> Tensor:
    """Zeros, NaN of both signs, infinities, the extremes of normal and denormal numbers."""
    info = torch.finfo(dtype)
    numbers = [0.0, math.inf, math.nan, info.max, info.tiny, info.smallest_normal, 1.0]
    numbers.append(info.smallest_normal * info.eps)  # the smallest denormal
    values = torch.tensor(numbers, dtype=torch.float64).to(dtype)
    return torch.cat([values, -values])


def sign(number: float) -> int:
    """-1, 0 or +1; NaN has no sign."""
    return int(number > 0) - int(number < 0)


def to_bytes(bits: Sequence[bool]) -> list[int]:
    """Bit ``k`` of byte ``b`` is element ``8 b + k``."""
    number = sum(1 << position for position, bit in enumerate(bits) if bit)
    return list(number.to_bytes((len(bits) + 7) // 8, "little"))


def to_bits(packed: Tensor, numel: int) -> list[bool]:
    """The first ``numel`` bits, the reverse of :func:`to_bytes`."""
    number = int.from_bytes(bytes(packed.tolist()), "little")
    return [bool(number >> position & 1) for position in range(numel)]


def bits_of(values: Tensor) -> list[int]:
    """The memory of ``values`` as integers: tells 0 from -0, and equals itself at NaN."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    return values.contiguous().view(integer).flatten().tolist()
