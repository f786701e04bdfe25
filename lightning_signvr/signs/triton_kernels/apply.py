"""Packed signs onto parameters, in one pass over memory."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_signvr.signs.triton_kernels.launch import launch
from lightning_signvr.signs.triton_kernels.numbers import (
    element_pointer,
    narrow,
    positions,
    read,
    scalar,
    to_bits,
    widen,
    write,
)
from lightning_signvr.signs.triton_kernels.table import BLOCK, addresses, aligned, dtype_of, table_of


@triton.jit
def _block(
    targets, copies, negative, zeros, start, numel, alpha, decay,
    DTYPE: tl.constexpr, DECAYS: tl.constexpr, ZEROS: tl.constexpr, COPIES: tl.constexpr,  # noqa: N803
    MASKED: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Elements ``start`` and following of one tensor."""
    elements = positions(start, BLOCK)
    inside = elements < numel
    row = start // 8 + tl.arange(0, BLOCK // 8)
    used = row * 8 < numel
    target = read(targets + elements, inside, MASKED)
    if COPIES:
        write(copies + elements, target, inside, MASKED)
    if DECAYS:
        number = widen(target)
        target = narrow(number * scalar(decay, number), DTYPE)
    number = widen(target)
    step = widen(narrow(scalar(alpha, number), DTYPE))
    against = to_bits(read(negative + row, used, MASKED))
    moved = narrow(number + tl.where(against, -step, step), DTYPE)
    if ZEROS:  # adding 0 would make 0.0 of -0.0
        moved = tl.where(to_bits(read(zeros + row, used, MASKED)), target, moved)
    write(targets + elements, moved, inside, MASKED)


@triton.jit
def apply_kernel(
    targets, copies, blocks, numels, offsets, negative, zeros, numel, alpha: tl.float64, decay: tl.float64,
    DTYPE: tl.constexpr, DECAYS: tl.constexpr, ZEROS: tl.constexpr, COPIES: tl.constexpr,  # noqa: N803
    TABLE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """``target = decay * target + alpha * signs``; the old targets go to ``copies``.

    With ``TABLE``, tensors are given by tables of addresses, else there is one.
    """
    if TABLE:
        index = tl.load(blocks + 2 * tl.program_id(0)).to(tl.int64)
        start = tl.load(blocks + 2 * tl.program_id(0) + 1).to(tl.int64) * BLOCK
        targets = element_pointer(targets, index, DTYPE, ALIGNED)
        if COPIES:
            copies = element_pointer(copies, index, DTYPE, ALIGNED)
        numel = tl.load(numels + index)
        offset = tl.load(offsets + index)
        negative += offset
        if ZEROS:
            zeros += offset
    else:
        start = tl.program_id(0).to(tl.int64) * BLOCK
    if start + BLOCK <= numel:
        _block(targets, copies, negative, zeros, start, numel, alpha, decay,
               DTYPE, DECAYS, ZEROS, COPIES, False, BLOCK)  # fmt: skip
    else:
        _block(targets, copies, negative, zeros, start, numel, alpha, decay,
               DTYPE, DECAYS, ZEROS, COPIES, True, BLOCK)  # fmt: skip


@triton.jit
def unpack_kernel(
    signs, negative, zeros, numel, DTYPE: tl.constexpr, ZEROS: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """-1 and +1, and 0 where the bit of ``zeros`` is set."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    elements = positions(start, BLOCK)
    row = start // 8 + tl.arange(0, BLOCK // 8)
    used = row * 8 < numel
    numbers = tl.where(to_bits(tl.load(negative + row, mask=used, other=0)), -1.0, 1.0)
    if ZEROS:
        numbers = tl.where(to_bits(tl.load(zeros + row, mask=used, other=0)), 0.0, numbers)
    tl.store(signs + elements, narrow(numbers, DTYPE), mask=elements < numel)


def unpack(negative: Tensor, zero: Tensor | None, numel: int, dtype: torch.dtype) -> Tensor:
    """See :func:`lightning_signvr.signs.oracle.unpack`."""
    signs = torch.empty(numel, dtype=dtype, device=negative.device)
    launch(
        unpack_kernel, -(-numel // BLOCK), negative.device,
        signs, negative, zero, numel, DTYPE=dtype_of(signs), ZEROS=zero is not None, BLOCK=BLOCK,
    )  # fmt: skip
    return signs


def add_signs(target: Tensor, negative: Tensor, zero: Tensor | None, alpha: float, decay: float) -> None:
    """See :func:`lightning_signvr.signs.oracle.add_signs`."""
    launch(
        apply_kernel, -(-target.numel() // BLOCK), target.device,
        target, None, None, None, None, negative, zero, target.numel(), float(alpha), float(decay),
        DTYPE=dtype_of(target), DECAYS=decay != 1, ZEROS=zero is not None, COPIES=False,
        TABLE=False, ALIGNED=False, BLOCK=BLOCK,
    )  # fmt: skip


def add_signs_many(
    targets: Sequence[Tensor],
    negative: Tensor,
    offsets: Sequence[int],
    zero: Tensor | None,
    alpha: float,
    decay: float,
    copies: Sequence[Tensor] | None,
) -> None:
    """:func:`add_signs` for contiguous tensors of one dtype, in one launch.

    Args:
        targets: see there.
        negative, zero: whole planes.
        offsets: the byte in them at which each target's bits begin.
        alpha, decay: see there.
        copies: of the targets' shapes and dtype; get the targets as they were before. None for no copies.
    """
    device = negative.device
    table = table_of([target.numel() for target in targets], offsets, device)
    launch(
        apply_kernel, table.programs, device,
        addresses(targets, device), None if copies is None else addresses(copies, device),
        table.blocks, table.numels, table.offsets, negative, zero, 0, float(alpha), float(decay),
        DTYPE=dtype_of(targets[0]), DECAYS=decay != 1, ZEROS=zero is not None, COPIES=copies is not None,
        TABLE=True, ALIGNED=aligned(targets, copies or ()), BLOCK=BLOCK,
    )  # fmt: skip
