"""How often the outcome changes from one vote to the next."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_signvr.metrics.base import VoteMetric, check_votes
from lightning_signvr.signs import count_ones, pack_signs_and_abstentions
from lightning_signvr.voting import VotedSigns
from lightning_signvr.voting.result import VotedMeans


class FlipRate(VoteMetric):
    """Share of the coordinates whose voted sign is not that of the vote before.

    Of the coordinates that both votes decided. 0.5 is what coins do; near 1 the steps oscillate and the
    learning rate is too large. Keeps one bit per parameter (a second one where votes leave coordinates
    undecided). :meth:`reset` forgets the counts, but not the last vote: the next one is compared with it.
    A vote on other tensors than the one before is compared with nothing.

    Args:
        kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: ``dist_sync_on_step``.

    Example:
        >>> from lightning_signvr import MajorityVote
        >>> vote, flips = MajorityVote(), FlipRate()
        >>> flips.update(vote([torch.tensor([-0.3, 2.0])]))
        >>> flips.update(vote([torch.tensor([-0.1, -1.0])]))
        >>> flips.compute()
        tensor(0.5000)
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    flipped: Tensor
    compared: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.refuse_sync_on_step()
        self.add_state("flipped", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("compared", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        # no states: torchmetrics clears those before it computes a batch's value
        self._numels: tuple[int, ...] = ()
        self._before: tuple[Tensor, Tensor | None] | None = None

    @override
    def update(self, votes: VotedSigns) -> None:
        """Compare a vote with the one before; call it once for each."""
        check_votes(votes)
        negative, undecided = _copies(votes)
        if self._before is not None and self._numels == votes.layout.numels:
            before, undecided_before = (
                None if plane is None else plane.to(negative.device) for plane in self._before
            )
            assert before is not None
            flipped, skipped = before ^ negative, _either(undecided, undecided_before)
            if skipped is not None:
                flipped &= ~skipped
            self.flipped += count_ones(flipped)
            self.compared += votes.layout.num_parameters - (0 if skipped is None else count_ones(skipped))
        self._numels, self._before = votes.layout.numels, (negative, undecided)

    @override
    def compute(self) -> Tensor:
        """The share, NaN before two votes on the same tensors."""
        return self.ratio(self.flipped, self.compared)


def _copies(votes: VotedSigns) -> tuple[Tensor, Tensor | None]:
    """The signs' plane, and where there is none; the next vote overwrites its own."""
    size = votes.layout.num_bytes
    if not isinstance(votes, VotedMeans):
        undecided = None if votes.undecided is None else votes.undecided[:size].clone()
        return votes.negative[:size].clone(), undecided
    planes = torch.empty(2, size, dtype=torch.uint8, device=votes.planes.device)
    for index in range(len(votes.shapes)):
        part = votes.layout.part(index)
        pack_signs_and_abstentions(votes.values(index), planes[0, part], planes[1, part])
    return planes[0], planes[1]


def _either(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first | second
