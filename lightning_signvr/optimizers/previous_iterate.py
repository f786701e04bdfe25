"""How an optimizer remembers where a parameter was before the last step."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from lightning_signvr.optimizers.exchange import exchanged
from lightning_signvr.optimizers.moved_back import Move, moved_back
from lightning_signvr.voting import VotedSigns

MODES = ("copy", "rebuild")

COPY = "previous_iterate"
"""Key in a parameter's state of ``x_{t-1}`` itself (mode ``"copy"``)."""

ALPHA, DECAY = "previous_alpha", "previous_decay"
"""Keys of the last step ``x <- decay * x + alpha * vote`` as numbers (mode ``"rebuild"``)."""

NEGATIVE, UNDECIDED = "previous_vote", "previous_undecided"
"""Keys of the last step's vote, packed: where it was -1, and where it was 0, if anywhere. Both are
missing where nobody voted and so nothing moved."""


def is_known(state: dict[str, Any]) -> bool:
    """Whether a parameter's state tells its previous iterate, in either way."""
    return COPY in state or ALPHA in state


def forget(state: dict[str, Any]) -> None:
    for key in (COPY, ALPHA, DECAY, NEGATIVE, UNDECIDED):
        state.pop(key, None)


def room_for_copy(state: dict[str, Any], parameter: Tensor) -> Tensor:
    """Where to put a copy of ``parameter``, before it moves."""
    room = state.get(COPY)
    forget(state)
    if room is None or (room.dtype, room.device) != (parameter.dtype, parameter.device):
        room = torch.empty_like(parameter)
    state[COPY] = room
    return room


def keep_copy(state: dict[str, Any], parameter: Tensor) -> None:
    """Remember where ``parameter`` is, before it moves."""
    room_for_copy(state, parameter).copy_(parameter)


def keep_move(state: dict[str, Any], votes: VotedSigns, index: int, alpha: float, decay: float) -> None:
    """Remember the step that ``votes`` make of tensor ``index``.

    Raises:
        TypeError: an outcome that is more than signs.
    """
    if type(votes) is not VotedSigns:
        raise TypeError(
            f'previous_iterate="rebuild" needs a vote whose outcome is signs, got {type(votes).__name__}: '
            'use previous_iterate="copy"'
        )
    forget(state)
    state.update({ALPHA: alpha, DECAY: decay})
    if not votes.present[index]:
        return
    negative, undecided = votes.packed(index)
    state[NEGATIVE] = negative.clone()  # the vote's next call overwrites it
    if undecided is not None and bool(undecided.any()):
        state[UNDECIDED] = undecided.clone()


def visited(parameter: Tensor, state: dict[str, Any]) -> AbstractContextManager[None]:
    """A block in which the parameter is at its previous iterate; it stays where that is not known."""
    if COPY in state:
        return exchanged(parameter, state[COPY])
    if NEGATIVE in state:
        return moved_back(parameter, Move(state[ALPHA], state[DECAY], state[NEGATIVE], state.get(UNDECIDED)))
    return nullcontext()
