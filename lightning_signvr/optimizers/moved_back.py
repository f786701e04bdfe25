"""Take a parameter back to where it was before a step, and forth again to the last bit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_signvr.signs import add_signs_

CPU_BLOCK = 32 * 1024  # elements, a multiple of 8: in the cache, and too few for torch to wake its threads
BLOCK = 16 * 1024 * 1024  # on other devices, where each block costs some launches

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the size of a number


@dataclass(frozen=True)
class Move:
    """A step ``x <- decay * x + alpha * vote`` of one tensor.

    Attributes:
        alpha, decay: as in the formula; ``decay`` is not 0.
        negative: packed signs of the vote.
        undecided: packed, 1 where the vote is 0; None for nowhere.
    """

    alpha: float
    decay: float
    negative: Tensor
    undecided: Tensor | None

    def part(self, start: int, numel: int) -> Move:
        """The same for ``numel`` elements from ``start``, a multiple of 8."""
        part = slice(start // 8, (start + numel + 7) // 8)
        undecided = None if self.undecided is None else self.undecided[part]
        return Move(self.alpha, self.decay, self.negative[part], undecided)

    def do_(self, values: Tensor) -> Tensor:
        return add_signs_(values, self.negative, self.alpha, zeros=self.undecided, decay=self.decay)

    def undo_(self, values: Tensor) -> Tensor:
        add_signs_(values, self.negative, -self.alpha, zeros=self.undecided)
        return values if self.decay == 1 else values.div_(self.decay)


@contextmanager
def moved_back(parameter: Tensor, move: Move) -> Iterator[None]:
    """Inside the block the parameter is where it was before ``move``, but for rounding.

    At the end it is what it was at the start, to the last bit, without a copy of it in the meantime:
    ``move`` is repeated, and the few numbers that would not come back by that were kept.

    Raises:
        RuntimeError: at the end, if the block wrote into the parameter: the way back is lost then.
    """
    kept: deque[tuple[Tensor, Tensor]] = deque()  # of each block: positions and bits

    def go(values: Tensor, move: Move) -> None:
        there = move.undo_(values.clone())
        again = move.do_(there.clone())
        positions = (_bits(again) != _bits(values)).nonzero().view(-1)
        exceptions = positions, _bits(values)[positions]
        values.copy_(there)
        kept.append(exceptions)

    def come_back(values: Tensor, move: Move) -> None:
        if not kept:  # an error on the way: this block has not moved
            return
        move.do_(values)
        positions, bits = kept.popleft()
        _bits(values)[positions] = bits

    try:
        _by_blocks(go, parameter, move)
        version = parameter._version
        yield
        if parameter._version != version:
            raise RuntimeError(
                "a parameter was changed in place at the previous iterate (by Embedding(max_norm=...), for "
                'instance), so that it cannot be put back with previous_iterate="rebuild": use '
                'previous_iterate="copy"'
            )
    finally:
        _by_blocks(come_back, parameter, move)


def _by_blocks(function: Callable[[Tensor, Move], None], parameter: Tensor, move: Move) -> None:
    """Apply ``function`` to each block of the parameter, which it may change, and the block's move."""
    size = CPU_BLOCK if parameter.device.type == "cpu" else BLOCK
    flat = parameter.detach().reshape(-1)
    try:
        for start in range(0, flat.numel(), size):
            values = flat[start : start + size]
            function(values, move.part(start, values.numel()))
    finally:
        if not parameter.is_contiguous():  # then `flat` may be a copy
            parameter.detach().copy_(flat.view(parameter.shape))


def _bits(values: Tensor) -> Tensor:
    return values.view(_BITS[values.element_size()])
