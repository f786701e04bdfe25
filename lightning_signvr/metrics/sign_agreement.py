"""How much the workers agree."""

from __future__ import annotations

from typing_extensions import override

from lightning_signvr.metrics.share import ShareMetric
from lightning_signvr.signs import Counts


class SignAgreement(ShareMetric):
    """Mean of ``|sum of signs| / voters``, weighted by voters: 1 where all agree, NaN where nobody voted.

    The noise of n fair coins has about ``0.8 / sqrt(n)``.

    Args:
        groups: names of groups (layers, say) and the numbers of their tensors in the vote, which are those
            of the optimizer's parameters; ``compute()`` then returns a dict with a value for each group and
            ``"total"``. Needs ``vote.detailed = True``.
        kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: groups that cannot be, or groups and a vote without details.

    Example:
        >>> from lightning_signvr import MajorityVote
        >>> vote, agreement = MajorityVote(), SignAgreement()
        >>> agreement.update(vote([torch.tensor([-0.3, 2.0])]))  # a lone worker
        >>> agreement.compute()
        tensor(1.)
        >>> vote.detailed = True
        >>> layers = SignAgreement(groups={"weight": [0], "bias": [1]})
        >>> layers(vote([torch.tensor([-0.3, 2.0]), torch.tensor([1.0])]))
        {'total': tensor(1.), 'weight': tensor(1.), 'bias': tensor(1.)}
    """

    sums = ("agreement_margin", "agreement_votes")

    @override
    def count(self, counts: Counts, possible: int, coordinates: int) -> tuple[int, int]:
        return counts.margin, counts.votes
