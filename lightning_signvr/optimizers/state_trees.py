"""Optimizer states as trees of dicts and lists, with tensors and plain values as leaves."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def mapped(tree: Any, function: Callable[[Tensor], Any]) -> Any:
    """A copy of ``tree`` with ``function`` of each tensor in its place, called in the tree's order."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: mapped(value, function) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(mapped(value, function) for value in tree)
    return tree


def bytes_of(tensor: Tensor) -> Tensor:
    """The bytes of a tensor's elements, in their order; shares its memory where that can be had."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def checksum(tree: Any) -> int:
    """CRC-32 of all tensors and values of a tree, their names, dtypes and shapes.

    Example:
        >>> state = {0: {"momentum_buffer": torch.zeros(3), "steps": 4}}
        >>> same = {0: {"momentum_buffer": torch.zeros(3), "steps": 4}}
        >>> checksum(state) == checksum(same)
        True
        >>> same[0]["momentum_buffer"][1] = 1e-30
        >>> checksum(state) == checksum(same)
        False
    """
    crc = 0

    def take(tensor: Tensor) -> str:
        nonlocal crc
        crc = zlib.crc32(bytes_of(tensor.cpu()).numpy().data, crc)
        return f"{tensor.dtype} {tuple(tensor.shape)}"

    return zlib.crc32(repr(mapped(tree, take)).encode(), crc)
