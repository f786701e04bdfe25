"""The strategy for ``pytorch_lightning``, whose classes are others than ``lightning.pytorch``'s."""

from __future__ import annotations

from lightning_fabric.plugins.io import TorchCheckpointIO
from pytorch_lightning.strategies import DDPStrategy, StrategyRegistry
from pytorch_lightning.utilities.exceptions import SIGTERMException

from lightning_signvr.strategies.checkpoint_io import WholeCheckpointMixin
from lightning_signvr.strategies.mixin import SignVoteMixin
from lightning_signvr.strategies.stopping import StopTogether


class WholeCheckpointIO(WholeCheckpointMixin, TorchCheckpointIO):
    __doc__ = WholeCheckpointMixin.__doc__


class SignVoteStrategy(StopTogether, SignVoteMixin, DDPStrategy):  # type: ignore[misc]  # typed for the other
    __doc__ = SignVoteMixin.__doc__
    namespace = "pytorch_lightning"
    default_checkpoint_io = WholeCheckpointIO
    stop_exception = SIGTERMException


SignVoteStrategy.register_strategies(StrategyRegistry)
