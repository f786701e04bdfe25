"""One worker's planes: the signs of its directions, and where it abstains.

On a GPU directions are packed bucket by bucket; see :mod:`lightning_signvr.voting.waiting`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_signvr.signs import Direction, pack_signs, pack_signs_and_abstentions, random_bytes
from lightning_signvr.signs.recipes import computed
from lightning_signvr.voting.buffers import Buffers
from lightning_signvr.voting.layout import Layout
from lightning_signvr.voting.rules import ZeroRule, zero_stream
from lightning_signvr.voting.waiting import Waiting


class Packer:
    """Packs directions by the zero rule.

    Args:
        layout: of the planes.
        size: bytes of a plane.
        device: of the planes.
        voter: whose coins decide about zeros.
        zeros, seed: see :class:`MajorityVote`.
        together: whether directions wait for each other, to be packed by one launch of a kernel.

    Attributes:
        negative: uint8, ``[size]``, the sign bits.
    """

    def __init__(
        self,
        layout: Layout,
        size: int,
        device: torch.device,
        voter: int,
        zeros: ZeroRule,
        seed: int,
        together: bool,
    ) -> None:
        self.negative = torch.zeros(size, dtype=torch.uint8, device=device)
        self._layout, self._size, self._device = layout, size, device
        self._voter, self._zeros, self._seed = voter, zeros, seed
        self._step = 0
        self._abstaining: Tensor | None = None  # made when a coordinate first abstains
        self._abstains = [False] * len(layout.numels)  # on any coordinate
        self._waiting = Waiting(layout, self.negative) if together else None
        self._scratch = Buffers(device)

    def open(self, step: int) -> None:
        """Begin a vote."""
        self._step = step
        if self._waiting is not None:
            self._waiting.open()

    def put(self, index: int, direction: Direction | None) -> None:
        """Pack a direction, or let it wait; None to abstain on all of the tensor."""
        part, abstained = self._layout.part(index), self._abstains[index]
        if direction is None:
            self._abstains[index] = True
            self.abstain(index, part, self.negative[part], self._abstaining_plane()[part])
            return
        if self._waiting is not None:
            self._abstains[index] = False  # as far as it is known here
            if abstained:  # in the last vote, as a whole
                self._abstaining_plane()[part] = 0
            self._waiting.add(index, direction)
            return
        zeros = self.pack(computed(direction), part, self.negative[part])
        self._abstains[index] = zeros is not None
        if zeros is not None:
            self._abstaining_plane()[part] = zeros
        elif abstained:
            self._abstaining_plane()[part] = 0

    def pack(self, numbers: Tensor, part: slice, negative: Tensor) -> Tensor | None:
        """Pack the signs of numbers into a part of the plane.

        Args:
            numbers: of any shape.
            part: where they are, in bytes of the plane.
            negative: that part of it.

        Returns:
            uint8, 1 where there is no sign and the rule is to abstain, overwritten by the next call; None for
            nowhere.
        """
        if self._zeros == "positive":
            pack_signs(numbers, negative)
            return None
        # most tensors have no zero: their plane would be one of zeros
        zeros = self._scratch.get("zeros", part.stop - part.start)
        *_, found = pack_signs_and_abstentions(numbers, negative, zeros)
        if found and self._zeros == "random":
            self._toss(part, negative, zeros)
            return None
        return zeros if found else None

    def abstain(self, index: int, part: slice, negative: Tensor, abstaining: Tensor) -> None:
        """Abstain on a part of a tensor, given that part of both planes; padding never abstains."""
        negative.zero_()
        abstaining.fill_(255)
        if part.stop == self._layout.part(index).stop and self._layout.padding(index):
            abstaining[-1] = 255 >> self._layout.padding(index)

    @property
    def must_pack(self) -> bool:
        """Whether no more directions should wait."""
        return self._waiting is not None and self._waiting.is_full

    def pack_waiting(self) -> None:
        """Pack what waits."""
        if self._waiting is None:
            return
        if self._zeros == "positive":
            self._waiting.pack(None)
        elif self._zeros == "abstain":
            self._waiting.pack(self._abstaining_plane())
        else:
            zeros = self._scratch.get("zeros", self._size)
            indices = self._waiting.pack(zeros)
            if self._waiting.abstains(indices):
                for part in map(self._layout.part, indices):
                    self._toss(part, self.negative[part], zeros[part])

    def abstaining(self, tensors: Sequence[int], part: slice) -> Tensor | None:
        """A part of the plane of abstentions, which is that of some tensors; None where it is all zero."""
        if self._abstaining is None:
            return None
        anywhere = any(self._abstains[index] for index in tensors)
        if not anywhere and self._waiting is not None and self._zeros == "abstain":
            anywhere = self._waiting.abstains(tensors)
        return self._abstaining[part] if anywhere else None

    def _toss(self, part: slice, negative: Tensor, zeros: Tensor) -> None:
        """Let a coin decide where a bit of ``zeros`` is set."""
        stream = zero_stream(self._voter)
        coins = random_bytes(self._seed, self._step, stream, part.start, part.stop, self._device)
        negative |= zeros & coins

    def _abstaining_plane(self) -> Tensor:
        if self._abstaining is None:
            self._abstaining = torch.zeros_like(self.negative)
        return self._abstaining
