"""The strategy for ``lightning.fabric``."""

from __future__ import annotations

from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.fabric.strategies import STRATEGY_REGISTRY
from lightning.fabric.strategies.ddp import DDPStrategy

from lightning_signvr.strategies.checkpoint_io import WholeCheckpointMixin
from lightning_signvr.strategies.fabric import FabricSignVoteMixin


class WholeCheckpointIO(WholeCheckpointMixin, TorchCheckpointIO):
    __doc__ = WholeCheckpointMixin.__doc__


class SignVoteStrategy(FabricSignVoteMixin, DDPStrategy):
    __doc__ = FabricSignVoteMixin.__doc__
    namespace = "lightning.fabric"
    default_checkpoint_io = WholeCheckpointIO


SignVoteStrategy.register_strategies(STRATEGY_REGISTRY)
