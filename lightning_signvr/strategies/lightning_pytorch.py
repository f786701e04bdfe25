"""The strategy for ``lightning.pytorch``."""

from __future__ import annotations

from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_signvr.strategies.checkpoint_io import WholeCheckpointMixin
from lightning_signvr.strategies.mixin import SignVoteMixin
from lightning_signvr.strategies.stopping import StopTogether


class WholeCheckpointIO(WholeCheckpointMixin, TorchCheckpointIO):
    __doc__ = WholeCheckpointMixin.__doc__


class SignVoteStrategy(StopTogether, SignVoteMixin, DDPStrategy):
    __doc__ = SignVoteMixin.__doc__
    namespace = "lightning.pytorch"
    default_checkpoint_io = WholeCheckpointIO
    stop_exception = SIGTERMException


SignVoteStrategy.register_strategies(StrategyRegistry)
