"""A closer look at a vote: each tensor's margins, and who voted with the outcome. Costs more than a tally."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lightning_signvr.signs.planes import Bits, add, ones
from lightning_signvr.signs.tally import Counts

_BLOCK = 64 * 1024  # bytes of one plane: the adders' work space stays in the cache


@dataclass
class Details:
    """What the votes on some coordinates of one tensor look like.

    Attributes:
        counts: their sums.
        margins: at ``k`` the number of coordinates with ``|votes for + - votes for -| = k``.
        agreeing: per voter, its votes that the outcome agrees with.
        cast: per voter, its votes where something was decided.
    """

    counts: Counts
    margins: list[int]
    agreeing: list[int]
    cast: list[int]


def examine(
    rows: Tensor, absent: Tensor | None, negative: Tensor, undecided: Tensor | None, padding: int = 0
) -> Details:
    """Look closely at the votes on one tensor.

    Args:
        rows: uint8, ``[voters, bytes]``, each voter's sign bits.
        absent: same shape, where a voter abstains; None for nowhere.
        negative: uint8, ``[bytes]``, the outcome.
        undecided: same shape, where nothing was decided; None for nowhere.
        padding: bits at the end that belong to no coordinate; everyone votes + there.

    Example:
        >>> import torch
        >>> votes = torch.tensor([[0b011], [0b001], [0b000]], dtype=torch.uint8)
        >>> look = examine(votes, None, torch.tensor([1], dtype=torch.uint8), None, padding=5)
        >>> look.margins, look.agreeing
        ([0, 2, 0, 1], [2, 3, 2])
    """
    voters, size = rows.shape
    # on a GPU, too: this is for a step now and then, and its results are printed
    votes, outcome = rows.cpu().numpy(), negative.cpu().numpy()
    silent = None if absent is None else absent.cpu().numpy()
    nothing = None if undecided is None else undecided.cpu().numpy()
    counts, margins = Counts(), np.zeros(voters + 1, np.int64)
    agreeing, cast = np.zeros(voters, np.int64), np.zeros(voters, np.int64)
    for start in range(0, size, _BLOCK):
        part = slice(start, min(start + _BLOCK, size))
        present = np.full_like(votes[:, part], 255) if silent is None else ~silent[:, part]
        in_favour, against = add(~votes[:, part] & present), add(votes[:, part] & present)
        difference = _distance(in_favour, against)
        found = [ones(_equals(difference, margin)) for margin in range(voters + 1)]
        margins += found
        quiet = ~np.bitwise_or.reduce([*in_favour, *against])
        silences = ones(quiet)
        counts += Counts(
            votes=sum(ones(plane) << k for planes in (in_favour, against) for k, plane in enumerate(planes)),
            margin=sum(margin * number for margin, number in enumerate(found)),
            ties=found[0] - silences,
            silent=silences,
        )
        decided = present if nothing is None else present & ~nothing[part]
        cast += [ones(row) for row in decided]
        agreeing += [ones(row) for row in decided & ~(votes[:, part] ^ outcome[part])]
    margins[voters] -= padding
    counts.votes -= padding * voters
    counts.margin -= padding * voters
    return Details(counts, margins.tolist(), (agreeing - padding).tolist(), (cast - padding).tolist())


def _distance(first: Sequence[Bits], second: Sequence[Bits]) -> list[Bits]:
    """Planes of the absolute difference of two numbers with as many planes."""
    differences = [_subtract(first, second), _subtract(second, first)]
    (planes, negative), (others, _) = differences
    return [(plane & ~negative) | (other & negative) for plane, other in zip(planes, others, strict=True)]


def _subtract(first: Sequence[Bits], second: Sequence[Bits]) -> tuple[list[Bits], Bits]:
    """Planes of ``first - second``, and where it is negative (there the planes mean nothing)."""
    borrow = np.zeros_like(first[0])
    planes = []
    for a, b in zip(first, second, strict=True):
        planes.append(a ^ b ^ borrow)
        borrow = (~a & b) | (~(a ^ b) & borrow)
    return planes, borrow


def _equals(planes: Sequence[Bits], number: int) -> Bits:
    equal: Bits = np.bitwise_and.reduce(
        [plane if number >> k & 1 else ~plane for k, plane in enumerate(planes)]
    )
    return equal
