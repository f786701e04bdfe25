"""Directions that wait for the others of their bucket, to be packed together by one launch of a kernel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lightning_signvr.signs import Direction, Recipe, pack_all
from lightning_signvr.voting.layout import Layout

MOST_ELEMENTS = 2**21
"""Of directions that wait: more memory than that is not worth a launch. Recipes take none."""


class Waiting:
    """One worker's directions that are put, but not packed yet.

    Args:
        layout: of the plane.
        negative: the plane that gets their signs.
    """

    def __init__(self, layout: Layout, negative: Tensor) -> None:
        self._layout, self._negative = layout, negative
        # One flag for each launch, 16 bytes apart: for an address that is no multiple of that, Triton would
        # compile the kernel once more.
        self._found = torch.zeros(len(layout.numels), 4, dtype=torch.int32, device=negative.device)
        self.open()

    def open(self) -> None:
        """Begin a vote; what waits from one that did not end is dropped."""
        self._found.zero_()
        self._directions: dict[int, Direction] = {}
        self._elements = 0
        self._launch: dict[int, int] = {}  # by the tensor
        self._launches = 0

    def add(self, index: int, direction: Direction) -> None:
        """Let a direction wait; it must not change any more."""
        self._directions[index] = direction
        if not isinstance(direction, Recipe):
            self._elements += direction.numel()

    @property
    def is_full(self) -> bool:
        """Whether no more should wait."""
        return self._elements >= MOST_ELEMENTS

    def pack(self, abstaining: Tensor | None) -> Sequence[int]:
        """Pack what waits, without waiting for the device.

        Args:
            abstaining: plane that gets where there is no sign; None to not look for that.

        Returns:
            The tensors whose directions were packed.
        """
        indices = list(self._directions)
        if not indices:
            return indices
        found = None if abstaining is None else self._found[self._launches, :1]
        offsets = [self._layout.offsets[index] for index in indices]
        pack_all(list(self._directions.values()), self._negative, offsets, abstaining, found)
        self._launch.update(dict.fromkeys(indices, self._launches))
        self._launches += 1
        self._directions.clear()
        self._elements = 0
        return indices

    def abstains(self, indices: Iterable[int]) -> bool:
        """Whether something without a sign was found in the launches that packed these; waits for the device.

        A tensor that lies in two buckets is packed with the first of them, so this may be said of the second
        one although all of its own coordinates have signs.
        """
        launches = {self._launch[index] for index in indices if index in self._launch}
        if not launches:
            return False
        found = self._found[: self._launches, 0].tolist()
        return any(found[launch] for launch in launches)
