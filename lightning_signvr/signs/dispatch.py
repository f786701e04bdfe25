"""Which kernels serve a device: NumPy's on CPU, Triton's on CUDA, plain torch elsewhere."""

from __future__ import annotations

import importlib
import logging
from functools import cache
from typing import Any

import torch

from lightning_signvr.signs import numpy_kernels, oracle

log = logging.getLogger(__name__)

TRITON_DEVICES = {"cuda"}
"""Types of the devices whose tensors go to Triton; the tests of its interpreter add ``"cpu"``."""


def triton_kernels(device: torch.device) -> Any:
    """The module of Triton kernels where they run on ``device``, else None.

    A CUDA device on which they do not run (Triton or a C compiler is not installed, the GPU is too old) gets
    plain torch, with the same results but slower; a warning in the log says so once.
    """
    return _that_work(device) if device.type in TRITON_DEVICES else None


@cache
def _that_work(device: torch.device) -> Any:
    try:
        # only here: most processes have no GPU, and importing Triton takes a while
        kernels = importlib.import_module("lightning_signvr.signs.triton_kernels")
        kernels.try_out(device)
    except Exception as error:
        log.warning(
            "Triton kernels do not run on %s (%s: %s): packing, counting and applying votes use plain torch "
            "operations there, with the same results but several times slower; install the triton that "
            "belongs to this torch, and a C compiler",
            device, type(error).__name__, error,
        )  # fmt: skip
        return None
    return kernels


def kernels_of(device: torch.device) -> Any:
    """The module whose ``pack``, ``unpack`` and ``add_signs`` serve ``device``."""
    triton = triton_kernels(device)
    if triton is not None:
        return triton
    return numpy_kernels if device.type == "cpu" else oracle
