"""A vote that has begun, and takes its directions as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from lightning_signvr.signs import Counts
from lightning_signvr.voting.ballot import Ballot
from lightning_signvr.voting.exchange import Terms
from lightning_signvr.voting.failures import CollectiveError
from lightning_signvr.voting.layout import Layout
from lightning_signvr.voting.nonfinite import MaybeDirection
from lightning_signvr.voting.result import VotedSigns

if TYPE_CHECKING:
    from lightning_signvr.voting.majority import MajorityVote

T = TypeVar("T")


class OpenVote:
    """What :meth:`MajorityVote.open` returns: :meth:`put` a direction for each tensor, then :meth:`close`.

    Buckets whose directions are all there travel while the others are still being made.

    Example:
        >>> from lightning_signvr.voting import MajorityVote
        >>> first, second = torch.zeros(2), torch.zeros(1)
        >>> vote = MajorityVote().open([first, second])
        >>> vote.put(1, torch.tensor([-2.0]))
        >>> vote.put(0, torch.tensor([0.5, -0.5]))
        >>> votes = vote.close()
        >>> [votes.signs(index).tolist() for index in votes.arrivals()]
        [[1.0, -1.0], [-1.0]]
    """

    def __init__(
        self,
        vote: MajorityVote,
        ballot: Ballot,
        terms: Terms,
        layout: Layout,
        shapes: Sequence[torch.Size],
        scales: Sequence[float] | None,
    ) -> None:
        self._vote, self._ballot, self._terms, self._scales = vote, ballot, terms, scales
        self._fields: dict[str, Any] = {"layout": layout, "shapes": shapes, "workers": ballot.voters}
        ballot.open(terms)

    def put(self, index: int, direction: MaybeDirection) -> None:
        """Vote on tensor ``index`` with the signs of ``direction``; None where there is nothing to say.

        :data:`~lightning_signvr.voting.nonfinite.NOT_FINITE` where NaN or inf stand against it.
        It must not change before :meth:`close`.

        Raises:
            TypeError: an integer, complex or sparse direction.
            ValueError: one that does not fit the tensor.
            RuntimeError: another rank votes on something else.
        """
        self._ballot.put(index, direction)
        if self._scales is None:
            self._guarded(self._ballot.advance)

    def close(self) -> VotedSigns:
        """No more directions come; the outcome does, by :meth:`VotedSigns.arrivals`.

        Raises:
            ValueError: there was no direction for some tensor, or too few ``scales``.
        """
        self._ballot.complete()
        if self._scales is not None and len(self._scales) != len(self._fields["shapes"]):
            raise ValueError(
                f"scales has {len(self._scales)} numbers for {len(self._fields['shapes'])} tensors"
            )
        fields, plain = self._fields, self._scales is None and not self._terms.decide.scaled_answer
        if self._ballot.alone and plain and not self._terms.detailed:
            votes = VotedSigns(**fields, **self._ballot.own_outcome())
            self._vote._end(votes)
            return votes
        if self._terms.decide.splits and plain:
            votes = VotedSigns(
                **fields,
                planes=self._ballot.planes,
                undecided=None,
                present=self._ballot.present,
                counts=Counts(),
            )
            votes.follow(self._arrivals(votes))
            return votes
        for _ in self._wait():
            pass
        votes = self._vote._result(self._ballot.outcome(), self._all_fields())
        self._vote._end(votes)
        return votes

    def collect(self, directions: Iterable[MaybeDirection]) -> VotedSigns:
        """Put them all, each before the next one is asked for, and close."""
        for index, direction in enumerate(directions):
            self.put(index, direction)
        return self.close()

    def _arrivals(self, votes: VotedSigns) -> Iterator[Sequence[int]]:
        for indices in self._wait():
            votes.undecided = self._ballot.undecided
            yield indices
        for name, value in self._all_fields().items():
            setattr(votes, name, value)
        self._vote._end(votes)

    def _wait(self) -> Iterator[Sequence[int]]:
        arrivals = self._ballot.arrivals(self._scales)
        while (indices := self._guarded(lambda: next(arrivals, None))) is not None:
            yield indices

    def _all_fields(self) -> dict[str, Any]:
        ballot, outcome = self._ballot, self._ballot.outcome()
        return {
            **self._fields,
            "planes": ballot.planes,
            "undecided": ballot.undecided,
            "present": outcome.present,
            "counts": outcome.counts,
            "scales": outcome.scales,
            "details": outcome.details,
            "nonfinite": ballot.nonfinite,
        }

    def _guarded(self, step: Callable[[], T]) -> T:
        try:
            return step()
        except CollectiveError:
            raise
        except BaseException:
            self._vote._is_open = False  # all ranks have found it and left the group alike
            self._vote._box.forget()  # what each side remembers of the other's planes may have parted
            raise
