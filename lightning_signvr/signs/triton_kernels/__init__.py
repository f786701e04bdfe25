"""GPU kernels. Needs Triton; only :mod:`lightning_signvr.signs.dispatch` imports it, where a GPU asks for it.

Each function equals its namesake in :mod:`lightning_signvr.signs.oracle` on the same device bit for bit.
"""

import torch

from lightning_signvr.signs.triton_kernels.apply import add_signs, add_signs_many, unpack
from lightning_signvr.signs.triton_kernels.pack import pack, pack_many
from lightning_signvr.signs.triton_kernels.philox import random_words
from lightning_signvr.signs.triton_kernels.tally import count

__all__ = ["add_signs", "add_signs_many", "count", "pack", "pack_many", "random_words", "try_out", "unpack"]


def try_out(device: torch.device) -> None:
    """Raise where kernels cannot be compiled or do not run on ``device``."""
    packed = torch.empty(1, dtype=torch.uint8, device=device)
    pack(torch.tensor([-1.0, 2.0, -3.0], device=device), packed, None)
    if packed.item() != 0b101:
        raise RuntimeError(f"a kernel packed [-1, 2, -3] as {packed.item():#b}")
