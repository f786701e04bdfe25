"""The strategy for ``lightning.pytorch``."""

from __future__ import annotations

from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry

from lightning_signvr.strategies.checkpoint_io import WholeCheckpointMixin
from lightning_signvr.strategies.mixin import SignVoteMixin


class WholeCheckpointIO(WholeCheckpointMixin, TorchCheckpointIO):
    __doc__ = WholeCheckpointMixin.__doc__


class SignVoteStrategy(SignVoteMixin, DDPStrategy):
    __doc__ = SignVoteMixin.__doc__
    namespace = "lightning.pytorch"
    default_checkpoint_io = WholeCheckpointIO


SignVoteStrategy.register_strategies(StrategyRegistry)
