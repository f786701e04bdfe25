"""What the metrics of this package share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import Self, override

from lightning_signvr.voting import VoteDetails, VotedSigns


class ExactMetric(Metric):
    """Counts are int64 and sums float64, whatever becomes of the module around: half precision loses them.

    ``set_dtype`` and ``to(dtype)`` choose the dtype of the result alone.
    """

    full_state_update = False  # sums: a batch's value needs no second update
    is_differentiable = False

    @override
    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        exact: dict[str, Any] = {name: getattr(self, name) for name in self._defaults}
        super()._apply(*args, **kwargs)
        for name, state in exact.items():
            setattr(self, name, state.to(self.device))
            zeros: Any = self._defaults[name]  # any dtype can hold them
            self._defaults[name] = zeros.to(state.dtype)
        return self

    def ratio(self, part: Tensor, whole: Tensor) -> Tensor:
        """In the metric's dtype; NaN where ``whole`` is 0."""
        dtype: torch.dtype = getattr(self, "dtype", torch.get_default_dtype())  # none in torchmetrics 1.0
        return (part.double() / whole).to(dtype)

    @override
    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one value or a sequence of them; needs matplotlib.

        Args:
            val: what ``compute()`` or ``forward()`` returned, or a list of such; None for ``compute()``.
            ax: axes to draw on; None for a new figure.

        Returns:
            The figure (None where ``ax`` is given) and the axes.

        Raises:
            ModuleNotFoundError: matplotlib is missing.
        """
        return self._plot(val, ax)


class VoteMetric(ExactMetric):
    """A metric of what votes decided.

    A vote and its counts are the same on all ranks, and so is the metric. It therefore exchanges nothing
    unless it is told to (``sync_on_compute=True``), and may be computed on one rank alone.
    """

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("sync_on_compute", False)
        super().__init__(**kwargs)

    def refuse_sync_on_step(self) -> None:
        """For what compares with the update before: torchmetrics would update twice to sync a step."""
        if self.dist_sync_on_step:
            raise ValueError(
                f"{type(self).__name__} cannot take dist_sync_on_step=True: leave it out, the vote is "
                "the same on all ranks"
            )


def check_votes(votes: object) -> None:
    """Raise TypeError where ``votes`` is not what a vote returned."""
    if not isinstance(votes, VotedSigns):
        raise TypeError(
            "votes must be what a vote returned (vote.last, after the first step), got "
            f"{type(votes).__name__}"
        )


def details_of(votes: VotedSigns, name: str) -> VoteDetails:
    """The closer look; ValueError with the remedy where there is none."""
    check_votes(votes)
    if votes.details is None:
        raise ValueError(
            f"{name} needs a closer look at the votes, and votes.details is None: set `vote.detailed = True` "
            "on all ranks before the vote"
        )
    return votes.details
