"""The mean of the workers' signs, in about log2(n + 1) bits."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from lightning_signvr.voting.decisions import ByMean, Decision
from lightning_signvr.voting.exchange import Outcome
from lightning_signvr.voting.majority import MajorityVote
from lightning_signvr.voting.result import VotedMeans, VotedSigns


class MeanVote(MajorityVote):
    """The outcome is the mean of the workers' signs, ``-1, -1 + 2 / n, ..., 1``, instead of its sign.

    Distributed Lion's averaging (arXiv 2404.00438) and SSDM (arXiv 1905.12938). Up it costs what
    :class:`MajorityVote` costs; the way back takes ``log2(n + 1)`` bits per parameter, rounded up (2 bits for
    2 or 3 workers), and one more from the first step on in which a worker abstains on some coordinate
    (``zeros="random"`` avoids that). An abstention counts as 0.

    Not a majority: each worker moves every outcome by up to ``2 / n``, a hostile one too.

    Args:
        process_group, zeros, seed: as for :class:`MajorityVote`. ``ties`` has no effect: a tie is the mean 0.

    Example:
        >>> import torch
        >>> MeanVote()([torch.tensor([-0.3, 2.0])]).values(0)  # a lone worker
        tensor([-1.,  1.])
    """

    nodes_can_vote = False

    @property
    @override
    def _decision(self) -> Decision:
        return ByMean() if self.workers > 1 else super()._decision

    @override
    def _result(self, outcome: Outcome, fields: dict[str, Any]) -> VotedSigns:
        if self.workers == 1:  # the own sign
            return super()._result(outcome, fields)
        return VotedMeans(**fields, counts_abstentions=outcome.abstentions)
