"""Layer 3: what one worker believes the full gradient is. No process group."""

from lightning_signvr.estimators.base import PREVIOUS, Estimator
from lightning_signvr.estimators.momentum import Momentum, state_dtype
from lightning_signvr.estimators.raw import RawGradient
from lightning_signvr.estimators.storm import Storm, correction_now

__all__ = ["PREVIOUS", "Estimator", "Momentum", "RawGradient", "Storm", "correction_now", "state_dtype"]
