"""The strategy for ``lightning_fabric``, whose classes are others than ``lightning.fabric``'s."""

from __future__ import annotations

from lightning_fabric.plugins.io import TorchCheckpointIO
from lightning_fabric.strategies import STRATEGY_REGISTRY
from lightning_fabric.strategies.ddp import DDPStrategy

from lightning_signvr.strategies.checkpoint_io import WholeCheckpointMixin
from lightning_signvr.strategies.fabric import FabricSignVoteMixin


class WholeCheckpointIO(WholeCheckpointMixin, TorchCheckpointIO):
    __doc__ = WholeCheckpointMixin.__doc__


class SignVoteStrategy(FabricSignVoteMixin, DDPStrategy):  # type: ignore[misc]  # the mixin is typed for the other
    __doc__ = FabricSignVoteMixin.__doc__
    namespace = "lightning_fabric"
    default_checkpoint_io = WholeCheckpointIO


SignVoteStrategy.register_strategies(STRATEGY_REGISTRY)
