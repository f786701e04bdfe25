"""What users choose about the vote, the same for the strategies of Lightning and of Fabric."""

from __future__ import annotations

from typing import Any, get_args

from lightning_signvr.optimizers.resizing import OnResize, check_on_resize
from lightning_signvr.strategies.sharded import ShardedCheckpoints, StateDictType
from lightning_signvr.voting import MajorityVote
from lightning_signvr.voting.rules import check_rule


class VotingOptions(ShardedCheckpoints):
    """For strategies."""

    _rules: dict[str, Any]
    _overlap: bool

    def _choose(
        self, *, overlap: bool, on_resize: OnResize, state_dict_type: StateDictType, **rules: Any
    ) -> None:
        """Keep the options.

        Args:
            overlap, on_resize, state_dict_type: see the strategies.
            rules: arguments of the votes, but for their group.

        Raises:
            ValueError, TypeError: one is out of range.
        """
        MajorityVote(**rules)  # raises on bad rules before anything starts
        check_on_resize(on_resize)
        check_rule("state_dict_type", state_dict_type, get_args(StateDictType))
        self._rules, self._overlap, self._on_resize = rules, overlap, on_resize
        self._state_dict_type = state_dict_type
