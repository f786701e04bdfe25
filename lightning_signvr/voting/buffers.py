"""Memory that is kept from vote to vote."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Buffers:
    """Named buffers that grow where they must and are never given back.

    Args:
        device: where they are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._flat: dict[str, Tensor] = {}

    def get(self, name: str, *shape: int) -> Tensor:
        """A uint8 buffer of this shape; what was in it before is undefined."""
        size = math.prod(shape)
        flat = self._flat.get(name)
        if flat is None or flat.numel() < size:
            flat = self._flat[name] = torch.zeros(size, dtype=torch.uint8, device=self._device)
        return flat[:size].view(shape)
