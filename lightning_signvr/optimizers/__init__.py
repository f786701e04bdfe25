"""Layer 4: torch optimizers that vote. An estimator + an encoder + a vote + an update each."""

from lightning_signvr.optimizers.anchored import AnchoredOptimizer
from lightning_signvr.optimizers.base import SignOptimizer
from lightning_signvr.optimizers.signsgd import SignSGD
from lightning_signvr.optimizers.signum import Signum
from lightning_signvr.optimizers.ssvr import SSVR
from lightning_signvr.optimizers.voted_gradients import vote_gradients

__all__ = ["SSVR", "AnchoredOptimizer", "SignOptimizer", "SignSGD", "Signum", "vote_gradients"]
