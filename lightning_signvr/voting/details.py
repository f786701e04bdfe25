"""A closer look at one vote, summed over all shards: what monitors ask for now and then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lightning_signvr.signs import Counts, examine
from lightning_signvr.voting.decisions import Decided, ShardBallots

Numbers = npt.NDArray[np.int64]


@dataclass
class VoteDetails:
    """What the votes of one step look like, tensor by tensor and worker by worker.

    Attributes:
        counts: int64, ``[tensors, 4]``: votes, margin, ties and silent coordinates, see
            :class:`~lightning_signvr.signs.Counts`.
        margins: int64, ``[tensors, workers + 1]``: at ``k`` the number of coordinates with
            ``|votes for + - votes for -| = k``.
        agreeing: int64, ``[workers]``: each worker's votes that the outcome agrees with.
        cast: int64, ``[workers]``: each worker's votes where something was decided.
    """

    counts: Numbers
    margins: Numbers
    agreeing: Numbers
    cast: Numbers

    @classmethod
    def of_shard(cls, ballots: ShardBallots, decided: Decided) -> VoteDetails:
        """Look at the shard's votes."""
        tensors, workers = len(ballots.layout.numels), ballots.votes.shape[0]
        details = cls.from_numbers(np.zeros(cls.size(tensors, workers), np.int64), tensors, workers)
        undecided = decided.undecided if decided.unsettled is None else decided.unsettled
        for piece in ballots.pieces():
            look = examine(
                ballots.votes[:, piece.part],
                None if ballots.absent is None else ballots.absent[:, piece.part],
                decided.negative[piece.part],
                None if undecided is None else undecided[piece.part],
                padding=(piece.part.stop - piece.part.start) * 8 - piece.numel,
            )
            counts = look.counts
            details.counts[piece.index] = counts.votes, counts.margin, counts.ties, counts.silent
            details.margins[piece.index] = look.margins
            details.agreeing += look.agreeing
            details.cast += look.cast
        return details

    @staticmethod
    def size(tensors: int, workers: int) -> int:
        """How many numbers they are."""
        return tensors * 4 + tensors * (workers + 1) + 2 * workers

    def to_numbers(self) -> Numbers:
        return np.concatenate([part.ravel() for part in self._parts()])

    @classmethod
    def from_numbers(cls, numbers: Numbers, tensors: int, workers: int) -> VoteDetails:
        ends = np.cumsum([tensors * 4, tensors * (workers + 1), workers])
        counts, margins, agreeing, cast = np.split(numbers, ends)
        return cls(counts.reshape(tensors, 4), margins.reshape(tensors, workers + 1), agreeing, cast)

    @classmethod
    def sum_of(cls, shards: Sequence[Numbers], tensors: int, workers: int) -> VoteDetails:
        """Of what all owners sent."""
        return cls.from_numbers(np.sum(shards, 0), tensors, workers)

    def _parts(self) -> tuple[Numbers, ...]:
        return self.counts, self.margins, self.agreeing, self.cast

    def counts_of(self, tensors: Sequence[int]) -> Counts:
        """Sums over some of the tensors."""
        return Counts(*self.counts[list(tensors)].sum(0).tolist())

    @property
    def worker_agreement(self) -> list[float]:
        """Share of each worker's votes that the outcome agrees with; NaN for one that cast none.

        About ``1/2 + 0.4 / sqrt(n)`` for the noise of n fair coins; far below the others' is a worker
        with wrong labels, a broken one or a hostile one.
        """
        pairs = zip(self.agreeing.tolist(), self.cast.tolist(), strict=True)
        return [agreeing / cast if cast else float("nan") for agreeing, cast in pairs]
