"""Where each tensor's bits lie in the packed plane of all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_signvr.signs import packed_size


@dataclass(frozen=True)
class Layout:
    """Packed plane of a list of tensors, each of which starts on a byte of its own.

    Attributes:
        numels: elements of each tensor.
        offsets: first byte of each tensor, and one more: the size of the plane.
    """

    numels: tuple[int, ...]
    offsets: tuple[int, ...]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Layout:
        numels = tuple(tensor.numel() for tensor in tensors)
        offsets = [0]
        for numel in numels:
            offsets.append(offsets[-1] + packed_size(numel))
        return cls(numels, tuple(offsets))

    @property
    def num_bytes(self) -> int:
        return self.offsets[-1]

    @property
    def num_parameters(self) -> int:
        return sum(self.numels)

    def part(self, index: int) -> slice:
        """The bytes of tensor ``index``."""
        return slice(self.offsets[index], self.offsets[index + 1])

    def padding(self, index: int) -> int:
        """Bits behind the last element of tensor ``index``."""
        return packed_size(self.numels[index]) * 8 - self.numels[index]

    def digest(self, *extra: object) -> int:
        """64 bits that differ (but for a 2**-64 chance) where the layout or ``extra`` differs."""
        text = repr((self.numels, extra)).encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def common_device(tensors: Sequence[Tensor]) -> torch.device:
    """The one device of all ``tensors``.

    Raises:
        ValueError: there is more than one.
    """
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        names = ", ".join(sorted(str(device) for device in devices))
        raise ValueError(
            f"the tensors of one vote must be on one device, got {names}: move them, or use one "
            "optimizer per device"
        )
    return next(iter(devices), torch.device("cpu"))
