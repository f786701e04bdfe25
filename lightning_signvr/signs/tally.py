"""Count votes without unpacking them: bit-sliced carry-save adders over packed planes.

One bitwise operation on a plane works on all of its coordinates at once. n voters cost about 5 n
operations on packed bytes, that is 5 n / 8 byte operations per parameter, where unpacking to integers
would take 4 n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_signvr.signs import oracle
from lightning_signvr.signs.dispatch import triton_kernels
from lightning_signvr.signs.planes import Bits, add, ones

_BLOCK = 64 * 1024  # bytes of one plane: the adder's work space stays in the cache


@dataclass
class Counts:
    """What the votes on some coordinates add up to; the sums of :attr:`Tally.counts`.

    Attributes:
        votes: signs that were cast (voters times coordinates, less the abstentions).
        margin: sum over the coordinates of ``|votes for + - votes for -|``.
        ties: coordinates with as many votes for + as for -, and at least one of each.
        silent: coordinates on which every voter abstained.
    """

    votes: int = 0
    margin: int = 0
    ties: int = 0
    silent: int = 0

    @property
    def agreement(self) -> float:
        """Mean of ``|sum of signs| / voters``, weighted by voters; NaN if nobody voted."""
        return self.margin / self.votes if self.votes else float("nan")

    def __iadd__(self, other: Counts) -> Counts:
        self.votes += other.votes
        self.margin += other.margin
        self.ties += other.ties
        self.silent += other.silent
        return self


@dataclass
class Tally:
    """Outcome of a majority vote as packed planes, uint8 ``[bytes]`` each.

    Attributes:
        negative: 1 where more voters are against than for.
        tied: 1 where as many are against as for, and somebody voted; None if that cannot be.
        silent: 1 where nobody voted; None if that cannot be.
        counts: sums over all coordinates, padding included.
    """

    negative: Tensor
    tied: Tensor | None
    silent: Tensor | None
    counts: Counts


def majority(rows: Tensor, abstaining: Tensor | None = None) -> Tally:
    """Majority of each coordinate's votes.

    Args:
        rows: uint8, ``[voters, bytes]``: each voter's sign bits (1 = against), at least one voter.
        abstaining: uint8 of the same shape, 1 where a voter abstains and its sign bit does not
            count; None where nobody does.

    Returns:
        The outcome, on the device of ``rows``.

    Raises:
        ValueError: no voters, or shapes that differ.

    Example:
        >>> votes = torch.tensor([[0b011], [0b001], [0b000]], dtype=torch.uint8)
        >>> majority(votes).negative  # 2 of 3, 1 of 3 and 0 of 3 voters are against
        tensor([1], dtype=torch.uint8)
    """
    if rows.dim() != 2 or rows.shape[0] == 0 or rows.dtype != torch.uint8:
        raise ValueError(
            f"rows must be uint8 of shape [voters > 0, bytes], got {rows.dtype} {tuple(rows.shape)}"
        )
    if abstaining is not None and abstaining.shape != rows.shape:
        raise ValueError(
            f"abstaining has shape {tuple(abstaining.shape)}, the votes have {tuple(rows.shape)}"
        )
    kernels = triton_kernels(rows.device)
    if kernels is not None:
        ties = rows.shape[0] % 2 == 0 or abstaining is not None
        negative, tied, silent, sums = kernels.count(rows, abstaining, ties)
        return Tally(negative, tied, silent, Counts(*sums.tolist()))
    if rows.device.type == "cpu":
        return _bit_sliced_majority(rows, abstaining)
    return oracle_majority(rows, abstaining)


def oracle_majority(rows: Tensor, abstaining: Tensor | None = None) -> Tally:
    """:func:`majority` by unpacking and counting, in plain torch on any device."""
    positive, negative = oracle.count(rows, abstaining)
    tied = (positive == negative) & (positive > 0)
    silent = (positive + negative) == 0
    sums = [positive + negative, (positive - negative).abs(), tied, silent]
    votes, margin, ties, silences = torch.stack([each.sum() for each in sums]).tolist()  # waits once
    return Tally(
        negative=oracle.bits_to_bytes(negative > positive),
        tied=oracle.bits_to_bytes(tied) if rows.shape[0] % 2 == 0 or abstaining is not None else None,
        silent=oracle.bits_to_bytes(silent) if abstaining is not None else None,
        counts=Counts(votes, margin, ties, silences),
    )


def _bit_sliced_majority(rows: Tensor, abstaining: Tensor | None) -> Tally:
    votes = rows.numpy()
    absent = None if abstaining is None else abstaining.numpy()
    size = votes.shape[1]
    negative = np.empty(size, np.uint8)
    tied = np.empty(size, np.uint8) if len(votes) % 2 == 0 or absent is not None else None
    silent = np.empty(size, np.uint8) if absent is not None else None
    counts = Counts()
    for start in range(0, size, _BLOCK):
        part = slice(start, min(start + _BLOCK, size))
        if absent is None or not absent[:, part].any():
            in_favour = quiet = None
            against = add(votes[:, part])
            negative[part], tie = _compare_with_constant(against, len(votes))
        else:
            against = add(votes[:, part] & ~absent[:, part])
            in_favour = add(~(votes[:, part] | absent[:, part]))
            quiet = ~_any(against) & ~_any(in_favour)
            negative[part], equal = _compare(against, in_favour)
            tie = equal & ~quiet
        if tied is not None:
            tied[part] = 0 if tie is None else tie
        if silent is not None:
            silent[part] = 0 if quiet is None else quiet
        everyone = (part.stop - part.start) * 8 * len(votes)
        counts += _sum_up(against, in_favour, negative[part], everyone)
        counts.ties += 0 if tie is None else ones(tie)
        counts.silent += 0 if quiet is None else ones(quiet)
    return Tally(
        negative=torch.from_numpy(negative),
        tied=None if tied is None else torch.from_numpy(tied),
        silent=None if silent is None else torch.from_numpy(silent),
        counts=counts,
    )


def _compare_with_constant(planes: Sequence[Bits], voters: int) -> tuple[Bits, Bits | None]:
    """Where the number is more than half of ``voters``, and where it is exactly half."""
    half = voters // 2
    above = np.zeros_like(planes[0])
    equal = ~above
    for weight in reversed(range(len(planes))):
        if half >> weight & 1:
            equal &= planes[weight]
        else:
            above |= equal & planes[weight]
            equal &= ~planes[weight]
    return above, equal if voters % 2 == 0 else None


def _compare(first: Sequence[Bits], second: Sequence[Bits]) -> tuple[Bits, Bits]:
    """Where the first number is larger, and where both are equal; as many planes in both."""
    larger = np.zeros_like(first[0])
    equal = ~larger
    for a, b in zip(reversed(first), reversed(second), strict=True):
        larger |= equal & a & ~b
        equal &= ~(a ^ b)
    return larger, equal


def _any(planes: Sequence[Bits]) -> Bits:
    union: Bits = np.bitwise_or.reduce(planes)
    return union


def _total(planes: Sequence[Bits], mask: Bits | None = None) -> int:
    return sum(ones(plane if mask is None else plane & mask) << weight for weight, plane in enumerate(planes))


def _sum_up(
    against: Sequence[Bits], in_favour: Sequence[Bits] | None, negative: Bits, everyone: int
) -> Counts:
    """Votes and margin of a block in which ``everyone`` could have cast as many votes.

    ``sum |for - against|`` is ``sum (for - against)`` but for the sign where the outcome is negative.
    """
    all_against, lost_against = _total(against), _total(against, negative)
    if in_favour is None:
        voters = everyone // (len(negative) * 8)
        all_for, lost_for = everyone - all_against, voters * ones(negative) - lost_against
    else:
        all_for, lost_for = _total(in_favour), _total(in_favour, negative)
    margin = all_for - all_against + 2 * (lost_against - lost_for)
    return Counts(votes=all_for + all_against, margin=margin)
