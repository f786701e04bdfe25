"""Workers whose gradients have NaN or inf: who they are, and for how long."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Final, Literal, get_args

from lightning_signvr.signs import Direction

log = logging.getLogger(__name__)

Nonfinite = Literal["abstain", "skip", "raise"]
NONFINITE_RULES: Sequence[str] = get_args(Nonfinite)


class NotFinite:
    """The kind of :data:`NOT_FINITE`."""

    def __repr__(self) -> str:
        return "NOT_FINITE"


NOT_FINITE: Final = NotFinite()
"""Stands for a direction that a worker cannot give, as its gradient has NaN or inf."""

MaybeDirection = Direction | NotFinite | None
"""What a worker has to say about a tensor; None for nothing."""


class NonfiniteRanks:
    """Counts the steps in a row in which ranks had gradients that are not finite.

    Args:
        limit: steps in a row after which that is an error; None for no limit.
        consequence: what such a rank does, for the log.

    Attributes:
        limit: as given.
        in_a_row: by rank, for those of the last step.

    Example:
        >>> ranks = NonfiniteRanks(limit=2, consequence="it abstains")
        >>> ranks.note(0, [1], speaks=False)
        >>> ranks.note(1, [1], speaks=False)
        >>> ranks.in_a_row
        {1: 2}
    """

    def __init__(self, limit: int | None, consequence: str) -> None:
        self.limit, self._consequence = limit, consequence
        self.in_a_row: dict[int, int] = {}
        self._last_step = 0

    def note(self, step: int, ranks: Collection[int], speaks: bool) -> None:
        """Take in what a step has shown.

        Args:
            step: its number.
            ranks: those whose gradients were not finite.
            speaks: whether this rank is the one that writes the log.
        """
        if speaks:
            for rank in sorted(set(ranks) - set(self.in_a_row)):
                log.warning(
                    "rank %d has NaN or inf in its gradients in step %d: %s", rank, step, self._consequence
                )
            for rank in sorted(set(self.in_a_row) - set(ranks)):
                log.warning(
                    "rank %d has finite gradients again in step %d, after %d step(s) without",
                    rank, step, self.in_a_row[rank],
                )  # fmt: skip
        self.in_a_row = {rank: self.in_a_row.get(rank, 0) + 1 for rank in ranks}
        self._last_step = step

    @property
    def lost(self) -> list[int]:
        """The ranks that are at the limit."""
        return [
            rank for rank, steps in self.in_a_row.items() if self.limit is not None and steps >= self.limit
        ]

    def check(self) -> None:
        """Raise where a rank is at the limit.

        Raises:
            RuntimeError: it is.
        """
        if self.lost:
            rank = min(self.lost)
            steps = self.in_a_row[rank]
            raise RuntimeError(
                f"rank {rank} had NaN or inf in its gradients in {steps} steps in a row, the last one "
                f"step {self._last_step}: look at that worker's data and machine, or lower the learning "
                "rate or clip gradients if it is all workers; nonfinite_limit=None goes on without it"
            )
