"""The strategy for ``pytorch_lightning``, whose classes are others than ``lightning.pytorch``'s."""

from __future__ import annotations

from pytorch_lightning.strategies import DDPStrategy, StrategyRegistry

from lightning_signvr.strategies.mixin import SignVoteMixin


class SignVoteStrategy(SignVoteMixin, DDPStrategy):  # type: ignore[misc]  # the mixin is typed for the other
    __doc__ = SignVoteMixin.__doc__
    namespace = "pytorch_lightning"


SignVoteStrategy.register_strategies(StrategyRegistry)
