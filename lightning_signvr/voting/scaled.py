"""The mean of scaled signs, with a state at the owner: error feedback's way to vote."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from typing_extensions import override

from lightning_signvr.voting.averaging import average_at_owners
from lightning_signvr.voting.decisions import ByScaledMean, Server
from lightning_signvr.voting.exchange import Outcome
from lightning_signvr.voting.majority import MajorityVote
from lightning_signvr.voting.nonfinite import MaybeDirection
from lightning_signvr.voting.result import VotedScaledSigns, VotedSigns


class ScaledMeanVote(MajorityVote):
    """Workers send signs and one scale per tensor; owners send back one bit per parameter.

    The owner of a shard computes ``a = mean_j scale_j sign_j`` and hands it to ``server``, which may keep
    a state over the steps; the sign of what the server returns goes to all workers. Costs ``2 (n - 1) / n``
    bits per parameter and rank, and a float32 per tensor to each other rank.

    A mean is not a majority: one worker with a large scale outvotes the others, so this is *not* robust
    against broken or hostile workers. Scales must be finite and at least 0.

    Args:
        process_group, zeros, seed: as for :class:`MajorityVote`. A tie of the mean is an exact 0 and does
            not move, whatever ``ties`` says.

    Example:
        >>> vote = ScaledMeanVote()
        >>> halves = lambda index, elements, size, mean: mean / 2
        >>> vote.cast([torch.tensor([-3.0, 1.0])], [2.0], halves).signs(0)
        tensor([-1.,  1.])
    """

    nodes_can_vote = False

    @override
    def __call__(self, *args: Any, **kwargs: Any) -> VotedSigns:
        """Not for this vote: it needs scales and a server."""
        raise TypeError("ScaledMeanVote is called with scales and a server: use its cast()")

    def cast(
        self,
        directions: Iterable[MaybeDirection],
        scales: Sequence[float],
        server: Server,
        like: Sequence[Tensor] | None = None,
        scaled_answer: bool = False,
        exact: Sequence[Tensor | None] | None = None,
    ) -> VotedSigns:
        """Vote; a collective: every rank must call it equally often.

        Args:
            directions, like: as for :class:`MajorityVote`.
            scales: one per tensor, at least 0; rounded to float32 on the way. Read after the directions.
            server: see :data:`~lightning_signvr.voting.decisions.Server`; called for each part of a
                tensor in the own shard.
            scaled_answer: whether ``server`` returns a factor too. It comes back with the signs, a float32
                per tensor and rank, and is part of what ``add_to_`` adds.
            exact: numbers that this worker sends in full precision, one tensor for each direction, None for
                0: the server gets their mean in the place of the scaled signs'. All ranks pass some, or none
                does. The workers still say by their directions who takes part, and by their scales whether
                they are finite. See :func:`~lightning_signvr.voting.averaging.average_at_owners`.

        Returns:
            The signs that came back, the same on all ranks.

        Raises:
            TypeError, ValueError, RuntimeError: as for :class:`MajorityVote`.
        """
        average = None
        if exact is not None:
            average = partial(average_at_owners, exact, traffic=self.traffic, group=self.process_group)
        return self._vote(directions, like, scales, ByScaledMean(server, scaled_answer, average))

    @override
    def _result(self, outcome: Outcome, fields: dict[str, Any]) -> VotedSigns:
        if outcome.answers is None:
            return super()._result(outcome, fields)
        return VotedScaledSigns(**fields, answers=outcome.answers, shard=outcome.shard)
