"""The few bytes that travel in front of each rank's bits. Everything is checked when it is read.

On the way to the owners (:class:`BallotHeader`): who sends, for which step and layout, and which
tensors the rank has no gradient for. On the way back (:class:`OutcomeHeader`): what the owner
counted. Both say how much room the sender needs to tell what changed in its second plane.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lightning_signvr.signs import Counts

# format, step (low 32 bits), digest of layout and rules, room, workers that are not finite
_BALLOT = struct.Struct("<4sIQQQ")
_OUTCOME = struct.Struct("<qqqqQ")  # counts, room
_MOST = 2**48  # votes on a shard: counts of all owners, added up, stay far from the end of int64
# by whether details are asked for, and whether numbers in full precision follow
_FORMATS = {
    (False, False): b"SGN1",
    (True, False): b"SGD1",
    (False, True): b"SGX1",
    (True, True): b"SGY1",
}


@dataclass(frozen=True)
class BallotHeader:
    """What a rank says about its votes.

    Attributes:
        step: number of the vote.
        digest: of the layout and the rules; equal on all ranks, or their bits do not mean the same.
        room: bytes that the changes of its abstentions take, for the owner with the most.
        missing: for each tensor, whether this rank has no direction at all.
        scales: for each tensor, the factor of this rank's signs; None for plain votes.
        detailed: whether this rank wants to know the vote's details.
        exact: whether this rank goes on to send numbers in full precision.
        nonfinite: bit k is set where worker k of this voter has none for some tensor, as its gradient is not
            finite. A voter is one worker, or those of a node.
    """

    step: int
    digest: int
    room: int
    missing: Sequence[bool]
    scales: Sequence[float] | None = None
    detailed: bool = False
    exact: bool = False
    nonfinite: int = 0

    @staticmethod
    def size(num_tensors: int, scaled: bool = False) -> int:
        """Bytes of the header of a vote on ``num_tensors`` tensors; a multiple of 8."""
        return _BALLOT.size + _flag_bytes(num_tensors) + (_float_bytes(num_tensors) if scaled else 0)

    def to_bytes(self) -> bytes:
        flags = np.packbits(np.array(self.missing, bool), bitorder="little").tobytes()
        form = _FORMATS[self.detailed, self.exact]
        head = _BALLOT.pack(form, self.step & 0xFFFFFFFF, self.digest, self.room, self.nonfinite)
        scales = b"" if self.scales is None else np.array(self.scales, "<f4").tobytes()
        count = len(self.missing)
        return (head + flags.ljust(_flag_bytes(count), b"\0") + scales).ljust(
            self.size(count, self.scales is not None), b"\0"
        )

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        num_tensors: int,
        rank: int,
        step: int,
        digest: int,
        most_room: int,
        scaled: bool = False,
        detailed: bool = False,
        exact: bool = False,
        workers: int = 1,
    ) -> BallotHeader:
        """Read the header of ``rank`` and check that it is about the same vote.

        Raises:
            RuntimeError: it is not, with the reason and the rank.
        """
        _check_length(data, cls.size(num_tensors, scaled), rank)
        form, their_step, their_digest, room, nonfinite = _BALLOT.unpack_from(data)
        forms = {known: flags for flags, known in _FORMATS.items()}
        if form not in forms:
            raise RuntimeError(
                f"rank {rank} sent something that is not a sign vote ({form!r}): all ranks must run the "
                "same version of lightning-signvr, and no other collective may be in between"
            )
        their_detailed, their_exact = forms[form]
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
        if their_detailed != detailed:
            does, other = ("does not ask", "does") if detailed else ("asks", "does not")
            raise RuntimeError(
                f"rank {rank} {does} for the details of this vote and this rank {other}: use the same "
                "callbacks and log_every_n_steps on all ranks"
            )
        if their_exact != exact:
            sends, other = ("does not send", "does") if exact else ("sends", "does not")
            raise RuntimeError(
                f"rank {rank} {sends} a gradient in full precision in this step and this rank {other}: "
                "take snapshots in the same steps on all ranks (use the same period), and a large first "
                "batch on all of them or on none"
            )
        check_room(room, most_room, rank)
        if nonfinite >> workers:
            raise RuntimeError(
                f"rank {rank} speaks of workers that it does not have ({nonfinite:b}): all ranks must run "
                "the same version of lightning-signvr"
            )
        flags = np.frombuffer(data, np.uint8, _flag_bytes(num_tensors), _BALLOT.size)
        missing = np.unpackbits(flags, count=num_tensors, bitorder="little").astype(bool).tolist()
        scales = None
        if scaled:
            values = np.frombuffer(data, "<f4", num_tensors, _BALLOT.size + _flag_bytes(num_tensors))
            if not (np.isfinite(values) & (values >= 0)).all():
                raise RuntimeError(
                    f"rank {rank} sent a scale that is negative or not finite: its gradient has NaN or inf; "
                    "find out why, or clip gradients"
                )
            scales = values.tolist()
        return cls(step, digest, room, missing, scales, detailed, exact, nonfinite)


def _flag_bytes(num_tensors: int) -> int:
    return -(-num_tensors // 64) * 8


def _float_bytes(num_tensors: int) -> int:
    return -(-num_tensors // 2) * 8


@dataclass(frozen=True)
class OutcomeHeader:
    """What an owner says about its shard.

    Attributes:
        counts: sums over the shard.
        room: bytes that the changes of the undecided coordinates take.
        scales: for each tensor, the factor of the signs on this shard; None for plain outcomes.
        details: what :meth:`VoteDetails.to_numbers` gives; None where nobody asked.
    """

    counts: Counts
    room: int
    scales: Sequence[float] | None = None
    details: npt.NDArray[np.int64] | None = None

    @staticmethod
    def size(num_tensors: int = 0, scaled: bool = False, num_details: int = 0) -> int:
        """Bytes of the header; a multiple of 8."""
        return _OUTCOME.size + (_float_bytes(num_tensors) if scaled else 0) + 8 * num_details

    def to_bytes(self) -> bytes:
        counts = self.counts
        data = _OUTCOME.pack(counts.votes, counts.margin, counts.ties, counts.silent, self.room)
        if self.scales is not None:
            data += np.array(self.scales, "<f4").tobytes().ljust(_float_bytes(len(self.scales)), b"\0")
        return data if self.details is None else data + self.details.astype("<i8").tobytes()

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        rank: int,
        most_room: int,
        num_tensors: int = 0,
        scaled: bool = False,
        num_details: int = 0,
    ) -> OutcomeHeader:
        """Read the header of ``rank``.

        Raises:
            RuntimeError: it makes no sense.
        """
        _check_length(data, cls.size(num_tensors, scaled, num_details), rank)
        votes, margin, ties, silent, room = _OUTCOME.unpack_from(data)
        if min(margin, ties, silent) < 0 or margin > votes or max(votes, ties, silent) > _MOST:
            raise RuntimeError(
                f"rank {rank} sent counts that cannot be ({votes} votes, margin {margin}, {ties} ties, "
                f"{silent} silent): all ranks must run the same version of lightning-signvr"
            )
        check_room(room, most_room, rank)
        scales = details = None
        if scaled:
            values = np.frombuffer(data, "<f4", num_tensors, _OUTCOME.size)
            if not (np.isfinite(values) & (values >= 0)).all():
                raise RuntimeError(
                    f"rank {rank} answers with a scale that is negative or not finite: the estimate that it "
                    "keeps has diverged; lower the learning rate, or clip gradients"
                )
            scales = values.tolist()
        if num_details:
            details = np.frombuffer(data, "<i8", num_details, cls.size(num_tensors, scaled))
            if details.min() < 0 or details.max() > _MOST:
                raise RuntimeError(
                    f"rank {rank} sent details of a vote that cannot be: all ranks must run the same version "
                    "of lightning-signvr"
                )
        return cls(Counts(votes, margin, ties, silent), room, scales, details)


def _check_length(data: bytes, size: int, rank: int) -> None:
    if len(data) != size:
        raise RuntimeError(
            f"rank {rank} sent a header of {len(data)} bytes, where {size} belong: all ranks must run the "
            "same version of lightning-signvr"
        )


def check_room(room: int, most: int, rank: int) -> None:
    """Raise where ``rank`` asks for more room than any honest rank can need."""
    if room > most or room % 8:
        raise RuntimeError(f"rank {rank} asks for {room} bytes, where at most {most} can be needed")
