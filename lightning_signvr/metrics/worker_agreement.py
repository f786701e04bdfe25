"""Which workers vote with the majority."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_signvr.metrics.base import VoteMetric, details_of
from lightning_signvr.voting import VotedSigns


class WorkerAgreement(VoteMetric):
    """Share of each worker's votes that the outcome agrees with, by rank; NaN for one that cast none.

    About ``1/2 + 0.4 / sqrt(n)`` for the noise of n coins. A worker far below the others has wrong labels,
    is broken or hostile. Needs ``vote.detailed = True``.

    Args:
        kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: a vote without details, or of another number of workers than those before.

    Example:
        >>> from lightning_signvr import MajorityVote
        >>> vote, agreement = MajorityVote(), WorkerAgreement()
        >>> vote.detailed = True
        >>> agreement(vote([torch.tensor([-0.3, 2.0])]))  # a lone worker always agrees
        tensor(1.)
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    plot_legend_name = "rank"

    agreeing_and_cast: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # grows with the first vote to two counts per worker: one zero can be added to any number of them
        self.add_state("agreeing_and_cast", torch.zeros(1, dtype=torch.int64), dist_reduce_fx="sum")

    @override
    def update(self, votes: VotedSigns) -> None:
        """Add a vote; call it once for each."""
        details = details_of(votes, "WorkerAgreement")
        counts = torch.from_numpy(details.agreeing), torch.from_numpy(details.cast)
        if self.agreeing_and_cast.numel() not in (1, 2 * votes.workers):
            raise ValueError(
                f"WorkerAgreement has counted votes of {self.agreeing_and_cast.numel() // 2} workers, and "
                f"votes is of {votes.workers}: reset() it, or use a metric for each"
            )
        self.agreeing_and_cast = self.agreeing_and_cast + torch.cat(counts).to(self.device)

    @override
    def compute(self) -> Tensor:
        """The shares, ``[workers]`` (a scalar for one, as torchmetrics has it); NaN before the first vote."""
        agreeing, cast = self.agreeing_and_cast.expand(max(2, self.agreeing_and_cast.numel())).chunk(2)
        return self.ratio(agreeing, cast)
