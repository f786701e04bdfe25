"""By how many votes the outcomes were decided."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_signvr.metrics.base import VoteMetric, details_of
from lightning_signvr.voting import VotedSigns


class VoteMargin(VoteMetric):
    """Histogram of ``|votes for + - votes for -|``: the shares of the coordinates with 0, 1, ... workers.

    0 holds the ties, and the coordinates on which nobody voted. Needs ``vote.detailed = True``.
    :meth:`plot` draws bars.

    Args:
        kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: a vote without details, or of another number of workers than those before.

    Example:
        >>> from lightning_signvr import MajorityVote
        >>> vote, margin = MajorityVote(), VoteMargin()
        >>> vote.detailed = True
        >>> margin(vote([torch.tensor([-0.3, 2.0])]))  # a lone worker: nobody disagrees
        tensor([0., 1.])
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    plot_legend_name = "margin"

    margins: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # grows with the first vote: one zero can be added to any number of counts
        self.add_state("margins", torch.zeros(1, dtype=torch.int64), dist_reduce_fx="sum")

    @override
    def update(self, votes: VotedSigns) -> None:
        """Add a vote; call it once for each."""
        margins = torch.from_numpy(details_of(votes, "VoteMargin").margins.sum(0))
        if self.margins.numel() not in (1, margins.numel()):
            raise ValueError(
                f"VoteMargin has counted votes of {self.margins.numel() - 1} workers, and votes is of "
                f"{votes.workers}: reset() it, or use a metric for each"
            )
        self.margins = self.margins + margins.to(self.device)

    @override
    def compute(self) -> Tensor:
        """The shares, ``[workers + 1]``; one NaN before the first vote."""
        return self.ratio(self.margins, self.margins.sum())

    @override
    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Draw bars for one histogram, or a curve per margin for a sequence of them; needs matplotlib.

        Args:
            val: what ``compute()`` or ``forward()`` returned, or a list of such; None for ``compute()``.
            ax: axes to draw on; None for a new figure.

        Returns:
            The figure (None where ``ax`` is given) and the axes.

        Raises:
            ModuleNotFoundError: matplotlib is missing.
        """
        if isinstance(val, Sequence):
            return super().plot(val, ax)
        shares = self.compute() if val is None else val
        figure = None
        if ax is None:
            figure, ax = _pyplot().subplots()
        ax.bar(range(shares.numel()), shares.detach().cpu().view(-1).tolist())
        ax.set_xlabel("|votes for + - votes for -|")
        ax.set_ylabel("share of the coordinates")
        ax.set_xticks(range(shares.numel()))
        return figure, ax


def _pyplot() -> Any:
    try:
        return import_module("matplotlib.pyplot")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("VoteMargin.plot needs matplotlib: pip install matplotlib") from error
