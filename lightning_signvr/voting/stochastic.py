"""Majority vote's unbiased relative: the owner draws each outcome."""

from __future__ import annotations

from typing_extensions import override

from lightning_signvr.voting.decisions import ByStochasticSign, Decision
from lightning_signvr.voting.majority import MajorityVote


class StochasticVote(MajorityVote):
    """The outcome is random: + with probability ``(1 + mean of the workers' signs) / 2``.

    That is the server sign ``S_1`` of SSVR-MV's option 2 (arXiv 2406.00489): with unbiased signs from the
    workers the expected outcome is the mean of what they sent, where a majority's is not. It costs variance:
    a coordinate on which 60 % agree moves the right way in 60 % of the steps. Bits as for
    :class:`MajorityVote`. An abstention counts as 0 in the mean; where nobody votes nothing moves. A lone
    worker's outcome is its own sign.

    The coins are drawn by the owner of each shard from ``seed``, the step and the coordinate, so that all
    replicas see the same.

    Not a majority: each worker moves the odds of every outcome by up to ``1 / n``, a hostile one too.

    Args:
        process_group, zeros, seed: as for :class:`MajorityVote`. ``ties`` has no effect: a tie is a coin.

    Example:
        >>> import torch
        >>> StochasticVote()([torch.tensor([-0.3, 2.0])]).signs(0)  # a lone worker
        tensor([-1.,  1.])
    """

    nodes_can_vote = False

    @property
    @override
    def _decision(self) -> Decision:
        return ByStochasticSign(self.seed)
