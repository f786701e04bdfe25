"""How often the vote is tied."""

from __future__ import annotations

from typing_extensions import override

from lightning_signvr.metrics.share import ShareMetric
from lightning_signvr.signs import Counts


class TieRate(ShareMetric):
    """Share of the coordinates with as many votes for + as for -, which the tie rule decided.

    Args:
        groups, kwargs: as for :class:`SignAgreement`.

    Example:
        >>> from lightning_signvr import MajorityVote
        >>> TieRate()(MajorityVote()([torch.tensor([-0.3, 2.0])]))  # a lone worker
        tensor(0.)
    """

    sums = ("tied", "tie_coordinates")

    @override
    def count(self, counts: Counts, possible: int, coordinates: int) -> tuple[int, int]:
        return counts.ties, coordinates
