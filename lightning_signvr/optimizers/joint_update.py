"""Move many parameters by one launch of a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_signvr.signs import add_signs_all_
from lightning_signvr.voting import VotedSigns

if TYPE_CHECKING:
    from lightning_signvr.optimizers.base import SignOptimizer


def update_together(
    optimizer: SignOptimizer,
    votes: VotedSigns,
    indices: Sequence[int],
    parameters: Sequence[Tensor],
    groups: Sequence[dict[str, Any]],
) -> None:
    """What an optimizer does in ``before_update`` and ``update``, for all parameters of a group at once.

    Args:
        optimizer: whose ``update`` is :class:`SignOptimizer`'s own.
        votes: what was decided.
        indices: of the parameters to move.
        parameters, groups: all that vote.
    """
    members: dict[int, list[int]] = {}
    for index in indices:
        if votes.present[index]:
            members.setdefault(id(groups[index]), []).append(index)
        else:
            optimizer.before_update(parameters[index], votes, index, groups[index])
    for chosen in members.values():
        group, targets = groups[chosen[0]], [parameters[index] for index in chosen]
        copies = optimizer.room_for_old(targets, group)
        if copies is None:
            for index, target in zip(chosen, targets, strict=True):
                optimizer.before_update(target, votes, index, group)
        alpha, decay = optimizer.move(group)
        offsets = [votes.layout.offsets[index] for index in chosen]
        add_signs_all_(
            targets, votes.negative, offsets, alpha, zeros=votes.undecided, decay=decay, copies=copies
        )
