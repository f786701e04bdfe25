"""Layer 3: what one worker believes the full gradient is. No process group."""

from lightning_signvr.estimators.base import Estimator
from lightning_signvr.estimators.momentum import Momentum
from lightning_signvr.estimators.raw import RawGradient

__all__ = ["Estimator", "Momentum", "RawGradient"]
