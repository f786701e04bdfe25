"""The strategy for ``lightning.fabric``."""

from __future__ import annotations

from lightning.fabric.strategies import STRATEGY_REGISTRY
from lightning.fabric.strategies.ddp import DDPStrategy

from lightning_signvr.strategies.fabric import FabricSignVoteMixin


class SignVoteStrategy(FabricSignVoteMixin, DDPStrategy):
    __doc__ = FabricSignVoteMixin.__doc__
    namespace = "lightning.fabric"


SignVoteStrategy.register_strategies(STRATEGY_REGISTRY)
