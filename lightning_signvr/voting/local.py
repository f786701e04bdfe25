"""The vote of one worker alone."""

from __future__ import annotations

from typing import Any

from lightning_signvr.voting.majority import MajorityVote


class LocalVote(MajorityVote):
    """Each worker follows its own sign and sends nothing, whatever the process group.

    For gradients that are the same on all ranks already, because DDP or FSDP has averaged them:
    then a vote would only repeat them.

    Args:
        ties, zeros, seed: as in :class:`MajorityVote`.

    Example:
        >>> LocalVote().workers
        1
    """

    def __init__(self, **rules: Any) -> None:
        super().__init__(None, **rules)

    def _world(self) -> tuple[int, int]:
        return 0, 1
