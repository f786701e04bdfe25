"""How often workers do not vote."""

from __future__ import annotations

from typing_extensions import override

from lightning_signvr.metrics.share import ShareMetric
from lightning_signvr.signs import Counts


class AbstainRate(ShareMetric):
    """Share of the votes that were not cast: exact zeros, and tensors without a gradient.

    Args:
        groups, kwargs: as for :class:`SignAgreement`.

    Example:
        >>> from lightning_signvr import MajorityVote
        >>> AbstainRate()(MajorityVote()([torch.tensor([-0.3, 0.0])]))
        tensor(0.5000)
    """

    sums = ("abstained", "possible_votes")

    @override
    def count(self, counts: Counts, possible: int, coordinates: int) -> tuple[int, int]:
        return possible - counts.votes, possible
