"""The plane cut into buckets, so that one travels while the next one is packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from lightning_signvr.voting.layout import Layout

SMALLEST = 2**21
"""Parameters of a bucket, unless it is told; 256 KiB of signs, which take 2 ms at 1 Gbit/s."""

MOST = 64
"""Buckets of a plane, unless it is told: larger models get larger ones."""


@dataclass(frozen=True)
class Bucket:
    """A range of bytes of the plane; it may hold many tensors, or a part of one.

    Attributes:
        start: its first byte in the plane.
        shard: bytes that each rank owns of it, a multiple of 8.
        size: bytes of it, ``workers * shard``.
        first: index of the first tensor that lies in it.
        last: index behind the last one.
    """

    start: int
    shard: int
    size: int
    first: int
    last: int

    @property
    def stop(self) -> int:
        return self.start + self.size

    @property
    def part(self) -> slice:
        """Its bytes in the plane."""
        return slice(self.start, self.stop)


def cut(layout: Layout, workers: int, parameters: int | None) -> list[Bucket]:
    """Buckets of at least ``parameters`` coordinates each, but for the last one; None for a good number.

    They are cut anywhere, also inside of tensors: the coins of ties depend on the place in the plane, so
    that the outcome does not depend on the buckets.
    """
    if parameters is None:
        parameters = max(SMALLEST, -(-layout.num_bytes * 8 // MOST))
    unit = 64 * workers  # a shard is a multiple of 8 bytes
    size = -(-parameters // unit) * unit // 8
    whole = max(1, -(-layout.num_bytes // size))
    return [_bucket(layout, workers, k * size, min(size, layout.num_bytes - k * size)) for k in range(whole)]


def slice_of(bucket: Bucket, layout: Layout, number: int, slices: int) -> Bucket:
    """One of so many equal parts, which the workers of a shard divide among them."""
    size = bucket.size // slices
    start = bucket.start + number * size
    first, last = _tensors(layout.offsets, start, min(start + size, layout.num_bytes))
    return Bucket(start, bucket.shard, size, first, last)


def _bucket(layout: Layout, workers: int, start: int, used: int) -> Bucket:
    shard = -(-used // (8 * workers)) * 8
    first, last = _tensors(layout.offsets, start, start + used)
    return Bucket(start, shard, workers * shard, first, last)


def _tensors(offsets: Sequence[int], start: int, stop: int) -> tuple[int, int]:
    """The tensors that lie in some bytes; one without elements goes with the byte that it stands before."""
    inside = [
        index
        for index, (begin, end) in enumerate(pairwise(offsets))
        if (begin < stop and end > start) or (begin == end and start <= begin < stop)
        or (begin == end == stop == offsets[-1])
    ]  # fmt: skip
    return (inside[0], inside[-1] + 1) if inside else (0, 0)
