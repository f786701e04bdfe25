"""Start a kernel on the device of its tensors."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch


def launch(kernel: Any, programs: int, device: torch.device, *args: Any, **constants: Any) -> None:
    """Run ``kernel`` in so many programs; nothing where there are none.

    Products and sums are not contracted: a kernel rounds where torch does, and says ``fma`` where torch
    rounds once.
    """
    if programs == 0:
        return
    with nullcontext() if device.type == "cpu" else torch.cuda.device(device):
        kernel[(programs,)](*args, **constants, enable_fp_fusion=False)
