"""The few bytes that travel in front of each rank's bits.

On the way to the owners (:class:`Header`): who sends, for which step and layout, which tensors
the rank has no gradient for, and in which tensors some of its coordinates abstain. On the way
back (:func:`counts_to_bytes`): what the owner counted. Everything is checked when it is read.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_signvr.signs import Counts

_FIXED = struct.Struct("<4sIQ")  # format, step (low 32 bits), digest of layout and rules
_FORMAT = b"SGN1"
_COUNTS = struct.Struct("<qqqq")
COUNTS_SIZE = _COUNTS.size


@dataclass(frozen=True)
class Header:
    """What a rank says about its votes.

    Attributes:
        step: number of the vote.
        digest: of the layout and the rules; equal on all ranks, or their bits do not mean the same.
        missing: for each tensor, whether this rank abstains on all of it.
        abstaining: for each tensor, whether this rank abstains on some coordinate of it.
    """

    step: int
    digest: int
    missing: Sequence[bool]
    abstaining: Sequence[bool]

    @staticmethod
    def size(num_tensors: int) -> int:
        """Bytes of the header of a vote on ``num_tensors`` tensors."""
        return _FIXED.size + 2 * ((num_tensors + 7) // 8)

    def to_bytes(self) -> bytes:
        return (
            _FIXED.pack(_FORMAT, self.step & 0xFFFFFFFF, self.digest)
            + _flags_to_bytes(self.missing)
            + _flags_to_bytes(self.abstaining)
        )

    @classmethod
    def from_bytes(cls, data: bytes, num_tensors: int, rank: int, step: int, digest: int) -> Header:
        """Read the header of ``rank`` and check that it is about the same vote.

        Raises:
            RuntimeError: it is not, with the reason and the rank.
        """
        form, their_step, their_digest = _FIXED.unpack_from(data)
        if form != _FORMAT:
            raise RuntimeError(
                f"rank {rank} sent something that is not a sign vote ({form!r}): all ranks must run the "
                "same version of lightning-signvr, and no other collective may be in between"
            )
        if their_step != step & 0xFFFFFFFF:
            raise RuntimeError(
                f"rank {rank} is at step {their_step} where this rank is at step {step}: all ranks must "
                "call optimizer.step() equally often; was it skipped on one of them, or was only one of "
                "them resumed?"
            )
        if their_digest != digest:
            raise RuntimeError(
                f"rank {rank} votes on other tensors or by other rules than this rank: build the model, "
                "the optimizer and the vote (ties, zeros, seed) in the same way on all ranks"
            )
        size = (num_tensors + 7) // 8
        flags = np.frombuffer(data, np.uint8, 2 * size, _FIXED.size)
        missing, abstaining = (
            np.unpackbits(part, count=num_tensors, bitorder="little").astype(bool).tolist()
            for part in (flags[:size], flags[size:])
        )
        return cls(step, digest, missing, abstaining)


def _flags_to_bytes(flags: Sequence[bool]) -> bytes:
    return np.packbits(np.array(flags, bool), bitorder="little").tobytes()


def counts_to_bytes(counts: Counts) -> Tensor:
    """``counts`` as a uint8 tensor of :data:`COUNTS_SIZE` elements."""
    packed = _COUNTS.pack(counts.votes, counts.margin, counts.ties, counts.silent)
    return torch.frombuffer(bytearray(packed), dtype=torch.uint8)


def counts_from_bytes(data: bytes) -> Counts:
    """Inverse of :func:`counts_to_bytes`."""
    return Counts(*_COUNTS.unpack(data))
