"""Collect a parameter's gradient beside the one that it has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor


@contextmanager
def gradient_apart(parameter: Tensor, start: Tensor | None = None) -> Iterator[None]:
    """Inside the block ``.grad`` is ``start``; at the end it is put back, to the last bit.

    Args:
        parameter: whose backward passes inside the block add to ``start``, in place.
        start: gradient so far; None for none.
    """
    gradient = parameter.grad
    # a view into DDP's bucket (gradient_as_bucket_view), which the next backward pass overwrites
    value = gradient.clone() if gradient is not None and gradient._is_view() else None
    parameter.grad = start
    try:
        yield
    finally:
        if gradient is not None and value is not None:
            gradient.detach().copy_(value)
        parameter.grad = gradient


def take_gradient(parameter: Tensor, other: Tensor | None) -> Tensor | None:
    """A parameter's gradient to keep: itself, copied where its memory is not its own.

    Args:
        parameter: whose ``.grad`` will be set to another tensor.
        other: gradient that must not share memory with it.
    """
    gradient = parameter.grad
    if gradient is None:
        return None
    borrowed = gradient._is_view() or (other is not None and _share_memory(gradient, other))
    return gradient.detach().clone() if borrowed else gradient.detach()


def _share_memory(first: Tensor, second: Tensor) -> bool:
    if first.is_sparse or second.is_sparse:
        return first is second
    return first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
