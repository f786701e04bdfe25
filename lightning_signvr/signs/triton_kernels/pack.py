"""Estimates and the bits of their signs, in one pass over memory."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_signvr.signs.recipes import CorrectedAverage, MovingAverage, Recipe, Recursive
from lightning_signvr.signs.triton_kernels.launch import launch
from lightning_signvr.signs.triton_kernels.numbers import (
    element_pointer,
    positions,
    read,
    scalar,
    to_bytes,
    widen,
    write,
)
from lightning_signvr.signs.triton_kernels.table import BLOCK, addresses, aligned, dtype_of, table_of

PLAIN = tl.constexpr(0)
AVERAGE = tl.constexpr(1)
RECURSIVE = tl.constexpr(2)
CORRECTED = tl.constexpr(3)


@triton.jit
def _estimate(state, gradient, last, keep, weight, correction, FORMULA: tl.constexpr):  # noqa: N803
    """One of :mod:`lightning_signvr.signs.recipes`.

    ``add_(x, alpha=a)`` rounds once in torch, the sum of products as they are: hence ``fma``.
    """
    if FORMULA == RECURSIVE:
        return (state - last) * scalar(keep, state) + gradient
    estimate = tl.fma(gradient, scalar(weight, state), state * scalar(keep, state))
    if FORMULA == CORRECTED:
        factor = scalar(correction, state)
        estimate = tl.fma(gradient, factor, estimate)
        estimate = tl.fma(last, -factor, estimate)
    return estimate


@triton.jit
def _block(
    gradients, states, lasts, negative, abstaining, found, start, numel, keep, weight, correction,
    FORMULA: tl.constexpr, ABSTAIN: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Elements ``start`` and following of one tensor."""
    elements = positions(start, BLOCK)
    inside = elements < numel
    direction = widen(read(gradients + elements, inside, MASKED))
    if FORMULA != PLAIN:
        last = direction
        if FORMULA != AVERAGE:
            last = widen(read(lasts + elements, inside, MASKED))
        state = read(states + elements, inside, MASKED)
        direction = _estimate(state, direction, last, keep, weight, correction, FORMULA)
        write(states + elements, direction, inside, MASKED)
    row = start // 8 + tl.arange(0, BLOCK // 8)
    used = row * 8 < numel
    against = direction < 0
    code = tl.where(against, 1, 0)
    if ABSTAIN:
        missing = ~(against | (direction > 0))
        if MASKED:
            missing = missing & inside
        code = tl.where(missing, 256, code)
    both = to_bytes(code)
    write(negative + row, both.to(tl.uint8), used, MASKED)
    if ABSTAIN:
        absent = (both >> 8).to(tl.uint8)
        write(abstaining + row, absent, used, MASKED)
        tl.store(found + tl.zeros_like(row), 1, mask=absent != 0)  # all write the same


@triton.jit
def pack_kernel(
    gradients, states, lasts, blocks, numels, offsets, negative, abstaining, found, numel,
    keep: tl.float64, weight: tl.float64, correction: tl.float64,
    DTYPE: tl.constexpr, STATE_DTYPE: tl.constexpr, FORMULA: tl.constexpr, ABSTAIN: tl.constexpr,  # noqa: N803
    TABLE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Update states, write the signs' bits and where there is none; ``found`` becomes 1 where one is not.

    With ``TABLE``, tensors are given by tables of addresses, else there is one, without a state.
    """
    if TABLE:
        index = tl.load(blocks + 2 * tl.program_id(0)).to(tl.int64)
        start = tl.load(blocks + 2 * tl.program_id(0) + 1).to(tl.int64) * BLOCK
        gradients = element_pointer(gradients, index, DTYPE, ALIGNED)
        if FORMULA != PLAIN:
            states = element_pointer(states, index, STATE_DTYPE, ALIGNED)
        if FORMULA >= RECURSIVE:
            lasts = element_pointer(lasts, index, DTYPE, ALIGNED)
        numel = tl.load(numels + index)
        offset = tl.load(offsets + index)
        negative += offset
        if ABSTAIN:
            abstaining += offset
    else:
        start = tl.program_id(0).to(tl.int64) * BLOCK
    if start + BLOCK <= numel:
        _block(gradients, states, lasts, negative, abstaining, found, start, numel, keep, weight,
               correction, FORMULA, ABSTAIN, False, BLOCK)  # fmt: skip
    else:
        _block(gradients, states, lasts, negative, abstaining, found, start, numel, keep, weight,
               correction, FORMULA, ABSTAIN, True, BLOCK)  # fmt: skip


def pack(values: Tensor, negative: Tensor, abstaining: Tensor | None) -> Tensor | bool:
    """See :func:`lightning_signvr.signs.oracle.pack`; what is returned is on the device."""
    device, numel = values.device, values.numel()
    found = None if abstaining is None else torch.zeros(1, dtype=torch.int32, device=device)
    launch(
        pack_kernel, -(-numel // BLOCK), device,
        values.contiguous(), None, None, None, None, None, negative, abstaining, found, numel, 0.0, 0.0, 0.0,
        DTYPE=dtype_of(values), STATE_DTYPE=None, FORMULA=PLAIN.value, ABSTAIN=abstaining is not None,
        TABLE=False, ALIGNED=False, BLOCK=BLOCK,
    )  # fmt: skip
    return False if found is None else found


def pack_many(
    directions: Sequence[Tensor | Recipe],
    negative: Tensor,
    offsets: Sequence[int],
    abstaining: Tensor | None,
    found: Tensor | None,
) -> None:
    """Pack contiguous directions that differ in their tensors alone, in one launch.

    Args:
        directions: tensors, or recipes of one kind with the same numbers.
        negative, abstaining: whole planes.
        offsets: the byte in them at which each direction's bits begin.
        found: int32, ``[1]``, becomes 1 where an abstention is found; given together with ``abstaining``.
    """
    device, first = negative.device, directions[0]
    recipes = [direction for direction in directions if isinstance(direction, Recipe)]
    gradients = [each.gradient if isinstance(each, Recipe) else each for each in directions]
    states = [recipe.state for recipe in recipes]
    lasts = [recipe.last for recipe in recipes if isinstance(recipe, Recursive | CorrectedAverage)]
    table = table_of([gradient.numel() for gradient in gradients], offsets, device)
    launch(
        pack_kernel, table.programs, device,
        addresses(gradients, device),
        addresses(states, device) if states else None,
        addresses(lasts, device) if lasts else None,
        table.blocks, table.numels, table.offsets, negative, abstaining, found, 0,
        getattr(first, "keep", 0.0), getattr(first, "weight", 0.0), getattr(first, "correction", 0.0),
        DTYPE=dtype_of(gradients[0]), STATE_DTYPE=dtype_of(states[0]) if states else None,
        FORMULA=_FORMULAS.get(type(first), PLAIN.value), ABSTAIN=abstaining is not None,
        TABLE=True, ALIGNED=aligned(gradients, states, lasts), BLOCK=BLOCK,
    )  # fmt: skip


_FORMULAS: dict[type, int] = {
    MovingAverage: AVERAGE.value,
    Recursive: RECURSIVE.value,
    CorrectedAverage: CORRECTED.value,
}
