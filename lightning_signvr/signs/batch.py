"""Many tensors at once: on CUDA one launch for all that are alike, elsewhere one tensor after the other."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from lightning_signvr.signs.codec import add_signs_, packed_size
from lightning_signvr.signs.definition import check_signable
from lightning_signvr.signs.dispatch import kernels_of, triton_kernels
from lightning_signvr.signs.recipes import Direction, Recipe, computed, tensor_of


def pack_all(
    directions: Sequence[Direction],
    negative: Tensor,
    offsets: Sequence[int],
    abstaining: Tensor | None = None,
    found: Tensor | None = None,
) -> None:
    """Pack the signs of many directions into one plane. Does not wait for the device.

    Args:
        directions: tensors, or recipes, which are carried out; of any shapes.
        negative: uint8 plane; gets the sign bits, as of :func:`pack_signs`.
        offsets: for each direction, the byte of the plane at which its bits begin. All its bytes are
            written; the bits behind its last element become 0.
        abstaining: uint8 plane of the same size; gets where there is no sign. None to not look for that.
        found: int32 tensor of one element, on the planes' device; becomes 1 where an abstention is found, and
            is left alone otherwise. Needed with ``abstaining``.

    Raises:
        TypeError: a direction that has no sign (integer, complex, sparse), a plane that is not 1-D uint8.
        ValueError: directions outside of the plane or on another device, planes that differ in size, no
            ``found`` with ``abstaining``.

    Example:
        >>> plane, absent, found = torch.zeros(2, 2, dtype=torch.uint8), torch.zeros(1, dtype=torch.int32), 0
        >>> pack_all([torch.tensor([-1.0, 0.0]), torch.tensor([-2.0])], plane[0], [0, 1], plane[1], absent)
        >>> plane.tolist(), absent.item()
        ([[1, 1], [2, 0]], 1)
    """
    if (abstaining is None) != (found is None):
        raise ValueError("found and abstaining belong together: pass both or none of them")
    numels = [tensor_of(direction).numel() for direction in directions]
    _check_planes({"negative": negative, "abstaining": abstaining}, numels, offsets)
    for index, direction in enumerate(directions):
        _check_member(tensor_of(direction), f"directions[{index}]", negative.device)
    triton = triton_kernels(negative.device)
    alike: dict[Hashable, list[int]] = {}
    for index, direction in enumerate(directions):
        key = None if triton is None else _kind(direction)
        if key is not None:
            alike.setdefault(key, []).append(index)
            continue
        values = computed(direction)
        part = slice(offsets[index], offsets[index] + packed_size(numels[index]))
        absent = None if abstaining is None else abstaining[part]
        some = kernels_of(negative.device).pack(values.detach().reshape(-1), negative[part], absent)
        if found is not None:
            found |= some
    for members in alike.values():
        triton.pack_many(
            [directions[index] for index in members],
            negative,
            [offsets[index] for index in members],
            abstaining,
            found,
        )


def add_signs_all_(
    targets: Sequence[Tensor],
    packed: Tensor,
    offsets: Sequence[int],
    alpha: float,
    *,
    zeros: Tensor | None = None,
    decay: float = 1.0,
    copies: Sequence[Tensor] | None = None,
) -> None:
    """:func:`add_signs_` for many targets whose signs lie in one plane. Does not wait for the device.

    Args:
        targets: floating-point tensors of any shapes.
        packed: uint8 plane.
        offsets: for each target, the byte of the plane at which its signs begin.
        alpha, decay: see there.
        zeros: plane of the coordinates with sign 0, or None for none.
        copies: of the targets' shapes, dtypes and device; get the targets as they were before. None for no
            copies.

    Raises:
        TypeError, ValueError: as :func:`pack_all`.

    Example:
        >>> weights = [torch.zeros(2), torch.zeros(1)]
        >>> add_signs_all_(weights, torch.tensor([1, 0], dtype=torch.uint8), [0, 1], alpha=0.5)
        >>> weights
        [tensor([-0.5000,  0.5000]), tensor([0.5000])]
    """
    numels = [target.numel() for target in targets]
    _check_planes({"packed": packed, "zeros": zeros}, numels, offsets)
    for index, target in enumerate(targets):
        _check_member(target, f"targets[{index}]", packed.device)
        if copies is not None and not _alike(copies[index], target):
            raise ValueError(f"copies[{index}] must have the shape, dtype and device of targets[{index}]")
    triton = triton_kernels(packed.device)
    alike: dict[torch.dtype, list[int]] = {}
    for index, target in enumerate(targets):
        copy = None if copies is None else copies[index]
        if triton is not None and _contiguous(target, copy):
            alike.setdefault(target.dtype, []).append(index)
            continue
        if copy is not None:
            copy.copy_(target)
        part = slice(offsets[index], offsets[index] + packed_size(numels[index]))
        add_signs_(target, packed[part], alpha, zeros=None if zeros is None else zeros[part], decay=decay)
    for members in alike.values():
        triton.add_signs_many(
            [targets[index] for index in members],
            packed,
            [offsets[index] for index in members],
            zeros,
            alpha,
            decay,
            None if copies is None else [copies[index] for index in members],
        )


def _contiguous(*tensors: Tensor | None) -> bool:
    return all(tensor is None or tensor.is_contiguous() for tensor in tensors)


def _alike(first: Tensor, second: Tensor) -> bool:
    return (first.shape, first.dtype, first.device) == (second.shape, second.dtype, second.device)


def _kind(direction: Direction) -> Hashable | None:
    """The same for directions that one launch can pack; None where a kernel cannot do it."""
    if not isinstance(direction, Recipe):
        return direction.dtype if direction.is_contiguous() else None
    gradient, last = direction.gradient, getattr(direction, "last", None)
    wide = torch.promote_types(gradient.dtype, torch.float32)
    if not _contiguous(direction.state, gradient, last) or direction.state.dtype != wide:
        return None
    if (gradient.shape, gradient.device) != (direction.state.shape, direction.state.device):
        return None
    if last is not None and not _alike(last, gradient):
        return None
    numbers = direction.keep, getattr(direction, "weight", None), getattr(direction, "correction", None)
    return type(direction), gradient.dtype, *numbers


def _check_planes(planes: dict[str, Tensor | None], numels: Sequence[int], offsets: Sequence[int]) -> None:
    if len(offsets) != len(numels):
        raise ValueError(f"offsets has {len(offsets)} numbers for {len(numels)} tensors")
    sizes = set()
    for name, plane in planes.items():
        if plane is None:
            continue
        if plane.dtype != torch.uint8 or plane.dim() != 1 or not plane.is_contiguous():
            raise TypeError(
                f"{name} must be a contiguous 1-D uint8 tensor, got {plane.dtype} of shape "
                f"{tuple(plane.shape)}"
            )
        sizes.add(plane.numel())
    if len(sizes) > 1:
        raise ValueError(f"{' and '.join(planes)} must be of one size, got {sorted(sizes)} bytes")
    size = sizes.pop()
    for index, (numel, offset) in enumerate(zip(numels, offsets, strict=True)):
        if not 0 <= offset <= size - packed_size(numel):
            raise ValueError(
                f"offsets[{index}] is {offset}, but {packed_size(numel)} bytes from there on do not lie in a "
                f"plane of {size} bytes"
            )


def _check_member(tensor: Tensor, name: str, device: torch.device) -> None:
    check_signable(tensor, name)
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, its plane is on {device}: move one of them")
