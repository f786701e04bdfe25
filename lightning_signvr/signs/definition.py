"""The one definition of a sign that everything in this library uses.

==================  ==========  =========
value               sign bit    abstains
==================  ==========  =========
x > 0, +inf         0           no
x < 0, -inf         1           no
0.0, -0.0           0           yes
NaN                 0           yes
==================  ==========  =========

Denormal numbers are ordinary positive or negative values. A coordinate that abstains has no
direction; what its worker then votes is a *rule* (see :mod:`lightning_signvr.voting.rules`),
not a property of its bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

SUPPORTED_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_SUPPORTED = ", ".join(str(dtype).removeprefix("torch.") for dtype in SUPPORTED_DTYPES)


def is_negative(values: Tensor) -> Tensor:
    """Boolean tensor, true where the sign bit is 1."""
    return values < 0


def abstains(values: Tensor) -> Tensor:
    """Boolean tensor, true where ``values`` has no sign: 0, -0 and NaN."""
    return ~((values < 0) | (values > 0))


def check_signable(values: Tensor, name: str) -> None:
    """Refuse what has no sign in the sense of this module.

    Raises:
        TypeError: ``values`` is not a dense, real floating-point tensor of a supported dtype.
    """
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(values).__name__}")
    if values.layout is not torch.strided:
        raise TypeError(
            f"{name} is sparse (layout {values.layout}); one-bit votes need dense values: "
            "build the layer with sparse=False or pass gradient.to_dense()"
        )
    if values.dtype not in SUPPORTED_DTYPES:
        raise TypeError(
            f"{name} has dtype {str(values.dtype).removeprefix('torch.')}, which has no sign vote; "
            f"supported are {_SUPPORTED}: convert it or exclude it from the optimizer"
        )


def check_result_dtype(dtype: torch.dtype, name: str) -> None:
    """Raise TypeError where signs cannot be written as ``dtype``."""
    if dtype not in SUPPORTED_DTYPES:
        raise TypeError(f"{name} must be one of {_SUPPORTED}, got {str(dtype).removeprefix('torch.')}")
