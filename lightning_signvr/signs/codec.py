"""Signs to bits and back: what the rest of the library calls.

Each function checks its arguments and hands them to the kernel of the device, see
:mod:`lightning_signvr.signs.dispatch`. Element ``8 b + k`` of the flattened values is bit ``k`` of byte
``b``; the bits behind the last element are 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_signvr.signs.definition import check_result_dtype, check_signable
from lightning_signvr.signs.dispatch import kernels_of


def packed_size(numel: int) -> int:
    """Bytes that hold ``numel`` bits."""
    return (numel + 7) // 8


def _plane(plane: Tensor | None, name: str, numel: int, device: torch.device) -> Tensor:
    """``plane`` if it can hold ``numel`` bits, a new one if it is None."""
    if plane is None:
        return torch.empty(packed_size(numel), dtype=torch.uint8, device=device)
    if plane.dtype != torch.uint8 or not plane.is_contiguous() or plane.dim() != 1:
        raise TypeError(
            f"{name} must be a contiguous 1-D uint8 tensor, got {plane.dtype} of shape {tuple(plane.shape)}"
        )
    if plane.numel() != packed_size(numel):
        raise ValueError(
            f"{name} has {plane.numel()} bytes, but {numel} signs take exactly {packed_size(numel)}"
        )
    if plane.device != device:
        raise ValueError(f"{name} is on {plane.device}, the values are on {device}: move one of them")
    return plane


def _flat(values: Tensor) -> Tensor:
    return values.detach().reshape(-1)


def pack_signs(values: Tensor, out: Tensor | None = None) -> Tensor:
    """One bit per element: 1 where it is negative, 0 elsewhere (0, -0 and NaN included).

    Args:
        values: floating-point tensor of any shape and layout in memory; flattened in logical order.
        out: uint8, ``[ceil(numel / 8)]``, written and returned; allocated if None.

    Returns:
        uint8 tensor, ``[ceil(numel / 8)]``, on the device of ``values``.

    Raises:
        TypeError: unsupported dtype (integer, complex, float8), sparse ``values``, ``out`` not uint8.
        ValueError: ``out`` of another size or on another device.

    Example:
        >>> pack_signs(torch.tensor([-1.0, 2.0, -3.0]))
        tensor([5], dtype=torch.uint8)
    """
    check_signable(values, "values")
    negative = _plane(out, "out", values.numel(), values.device)
    kernels_of(values.device).pack(_flat(values), negative, None)
    return negative


def pack_signs_and_abstentions(
    values: Tensor, out: Tensor | None = None, abstentions_out: Tensor | None = None
) -> tuple[Tensor, Tensor, bool]:
    """:func:`pack_signs`, and in the same pass which elements have no sign (0, -0, NaN).

    Returns:
        Sign bits, abstention bits (both uint8, ``[ceil(numel / 8)]``) and whether any is set in the
        latter (to know that, the CPU waits for a GPU; :func:`pack_all` does not).

    Raises:
        TypeError, ValueError: as :func:`pack_signs`.

    Example:
        >>> pack_signs_and_abstentions(torch.tensor([-1.0, 0.0, float("nan")]))
        (tensor([1], dtype=torch.uint8), tensor([6], dtype=torch.uint8), True)
    """
    check_signable(values, "values")
    negative = _plane(out, "out", values.numel(), values.device)
    abstaining = _plane(abstentions_out, "abstentions_out", values.numel(), values.device)
    found = kernels_of(values.device).pack(_flat(values), negative, abstaining)
    return negative, abstaining, bool(found)


def unpack_signs(
    packed: Tensor, numel: int, dtype: torch.dtype = torch.float32, zeros: Tensor | None = None
) -> Tensor:
    """Bits back to signs: +1 for 0, -1 for 1, and 0 where ``zeros`` has a 1.

    Args:
        packed: uint8, ``[ceil(numel / 8)]``, as from :func:`pack_signs`.
        numel: number of signs.
        dtype: of the result.
        zeros: bits in the same layout, or None for none.

    Returns:
        1-D tensor of ``numel`` elements.

    Raises:
        TypeError: ``packed`` or ``zeros`` is not contiguous 1-D uint8, ``dtype`` is not supported.
        ValueError: a size or a device that does not fit.

    Example:
        >>> unpack_signs(torch.tensor([5], dtype=torch.uint8), 3)
        tensor([-1.,  1., -1.])
    """
    if numel < 0:
        raise ValueError(f"numel must not be negative, got {numel}")
    check_result_dtype(dtype, "dtype")
    _plane(packed, "packed", numel, packed.device)
    if zeros is not None:
        _plane(zeros, "zeros", numel, packed.device)
    result: Tensor = kernels_of(packed.device).unpack(packed, zeros, numel, dtype)
    return result


def add_signs_(
    target: Tensor, packed: Tensor, alpha: float, *, zeros: Tensor | None = None, decay: float = 1.0
) -> Tensor:
    """``target = decay * target + alpha * signs`` in place, without unpacking the signs to memory.

    Args:
        target: floating-point tensor of any shape.
        packed: uint8, ``[ceil(numel / 8)]``, the signs of the flattened ``target``.
        alpha: the step.
        zeros: bits of coordinates with sign 0, or None for none.
        decay: factor of the old value, as decoupled weight decay needs it.

    Returns:
        ``target``.

    Raises:
        TypeError, ValueError: as :func:`unpack_signs`.
    """
    check_signable(target, "target")
    _plane(packed, "packed", target.numel(), target.device)
    if zeros is not None:
        _plane(zeros, "zeros", target.numel(), target.device)
    kernels = kernels_of(target.device)
    if target.is_contiguous():
        kernels.add_signs(target.detach().view(-1), packed, zeros, alpha, decay)
    else:
        flat = _flat(target).contiguous()  # a 1-D slice stays one when flattened
        kernels.add_signs(flat, packed, zeros, alpha, decay)
        target.detach().copy_(flat.view(target.shape))
    return target
