"""A plane of bits per rank, of which only the changes are sent.

Most steps change nothing, and then the plane costs nothing. Where something changes, it travels in
a *slot* behind the bits that are sent anyway; the slot's size is agreed on from what the last step
needed. Only where it does not fit, one more collective follows, of a size that all ranks know from
the headers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_signvr.signs.delta import decode_, encode, longest_code


class PlaneChannel:
    """One direction of such a plane.

    Args:
        senders: rows that are sent by this rank (one per receiver, or one for all).
        receivers: rows that this rank receives.
        size: bytes of a row, a multiple of 8.
        device: of the planes.
        storage: gives the memory of ``received``, uint8 of its size, zeroed; None for memory of its own.

    Attributes:
        slot: bytes of the slot in the next step; equal on all ranks.
        received: uint8, ``[receivers, size]``, the other side's plane as of now; None until any
            rank ever had a bit set.
    """

    def __init__(
        self,
        senders: int,
        receivers: int,
        size: int,
        device: torch.device,
        storage: Callable[[], Tensor] | None = None,
    ) -> None:
        self.slot = 0
        self.received: Tensor | None = None
        self.most_room = longest_code(size)
        self._sent: Tensor | None = None
        self._codes: Sequence[Tensor] = [torch.empty(0, dtype=torch.uint8, device=device)] * senders
        self._senders, self._receivers, self._size, self._device = senders, receivers, size, device
        self._storage = storage

    def prepare(self, plane: Tensor | None) -> int:
        """Encode what changed in the rows ``[senders, size]`` (None: all zero); the room that it takes."""
        if plane is None and self._sent is None:
            return 0
        if self._sent is None:
            self._sent = self._new(self._senders)
        current = torch.zeros_like(self._sent) if plane is None else plane
        self._codes = [encode(old, new) for old, new in zip(self._sent, current, strict=True)]
        self._sent.copy_(current)
        return max(code.numel() for code in self._codes)

    def write(self, slots: Tensor) -> None:
        """Put the codes into ``[senders, room]`` where all of them fit; leave it empty otherwise."""
        if slots.shape[1] == 0:
            return
        slots[:, :8] = 0
        if max(code.numel() for code in self._codes) <= slots.shape[1]:
            for slot, code in zip(slots, self._codes, strict=True):
                slot[: code.numel()] = code

    def read(self, slots: Tensor) -> None:
        """Take in the codes ``[receivers, room]`` of the other side.

        Raises:
            RuntimeError: the code of a rank is damaged.
        """
        if self.received is None:
            memory = None if self._storage is None else self._storage().view(self._receivers, -1)
            self.received = self._new(self._receivers) if memory is None else memory
        for rank, (plane, code) in enumerate(zip(self.received, slots, strict=True)):
            try:
                decode_(plane, code)
            except ValueError as error:
                raise RuntimeError(f"rank {rank} sent a damaged plane: {error}") from error

    def settle(self, room: int) -> bool:
        """Given the largest room of all ranks, size the next slot; whether this step's was too small."""
        too_small = room > self.slot
        self.slot = min(self.most_room, -(-room * 3 // 2 // 8) * 8)
        return too_small

    def _new(self, rows: int) -> Tensor:
        return torch.zeros(rows, self._size, dtype=torch.uint8, device=self._device)
