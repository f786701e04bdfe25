"""The strategy for ``lightning.pytorch``."""

from __future__ import annotations

from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry

from lightning_signvr.strategies.mixin import SignVoteMixin


class SignVoteStrategy(SignVoteMixin, DDPStrategy):
    __doc__ = SignVoteMixin.__doc__
    namespace = "lightning.pytorch"


SignVoteStrategy.register_strategies(StrategyRegistry)
