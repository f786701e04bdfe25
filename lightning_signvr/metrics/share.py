"""A share of all coordinates, and of each group of tensors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lightning_signvr.metrics.base import VoteMetric, check_votes, details_of
from lightning_signvr.signs import Counts
from lightning_signvr.voting import VotedSigns

TOTAL = "total"
"""Key of the value of all coordinates."""


class ShareMetric(VoteMetric):
    """A ratio of two counts, summed over the votes.

    A subclass names the two sums (no two classes alike: a ``MetricCollection`` takes metrics whose states
    have equal names and values for the same metric) and says how a vote's counts add to them.
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    sums: ClassVar[tuple[str, str]]

    def __init__(self, groups: Mapping[str, Sequence[int]] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.groups = None if groups is None else checked_groups(groups)
        for name in self.sums:
            self.add_state(
                name, torch.zeros(1 + len(self.groups or ()), dtype=torch.int64), dist_reduce_fx="sum"
            )

    @abstractmethod
    def count(self, counts: Counts, possible: int, coordinates: int) -> tuple[int, int]:
        """Of a vote: what to add to either sum.

        Args:
            counts: of these coordinates.
            possible: votes if nobody had abstained.
            coordinates: their number.
        """

    @override
    def update(self, votes: VotedSigns) -> None:
        """Add a vote; call it once for each."""
        check_votes(votes)
        numels, workers = votes.layout.numels, votes.workers
        size = votes.layout.num_parameters
        rows = [self.count(votes.counts, size * workers, size)]
        if self.groups:
            details = details_of(votes, f"{type(self).__name__}(groups=...)")
            for name, tensors in self.groups.items():
                if max(tensors) >= len(numels):
                    raise ValueError(
                        f"groups[{name!r}] has tensor {max(tensors)}, but the vote has {len(numels)} tensors "
                        "(the first is number 0)"
                    )
                size = sum(numels[index] for index in tensors)
                rows.append(self.count(details.counts_of(tensors), size * workers, size))
        for state, numbers in zip(self.sums, zip(*rows, strict=True), strict=True):
            added = torch.tensor(numbers, dtype=torch.int64, device=self.device)
            setattr(self, state, getattr(self, state) + added)

    @override
    def compute(self) -> Tensor | dict[str, Tensor]:
        """The share; with ``groups`` a dict of one for each group and ``"total"``."""
        part, whole = (getattr(self, name) for name in self.sums)
        shares = self.ratio(part, whole).unbind()
        return shares[0] if self.groups is None else dict(zip((TOTAL, *self.groups), shares, strict=True))


def checked_groups(groups: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """A copy of ``groups``.

    Raises:
        ValueError: a group that is empty, has a negative or a repeated number, or is called ``"total"``.
    """
    result = {name: tuple(tensors) for name, tensors in groups.items()}
    for name, tensors in result.items():
        if not tensors or min(tensors) < 0 or len(set(tensors)) < len(tensors):
            raise ValueError(
                f"groups[{name!r}] must hold numbers of tensors in the vote, at least one, each once, none "
                f"negative, got {tensors}"
            )
    if TOTAL in result:
        raise ValueError(
            f"groups[{TOTAL!r}]: that is the key of the value of all tensors, choose another name"
        )
    return result
