"""Layer 3: what one worker believes the full gradient is. No process group."""

from lightning_signvr.estimators.base import PREVIOUS, SNAPSHOT, Estimator, recipe_of
from lightning_signvr.estimators.error_feedback import ErrorFeedback
from lightning_signvr.estimators.increment import Increment
from lightning_signvr.estimators.lion import LionMomentum
from lightning_signvr.estimators.mars import Mars
from lightning_signvr.estimators.momentum import Momentum, state_dtype
from lightning_signvr.estimators.raw import RawGradient
from lightning_signvr.estimators.storm import Storm, correction_now
from lightning_signvr.estimators.storm_svrg import StormSvrg
from lightning_signvr.estimators.svrg import FULL_GRADIENT, Svrg

__all__ = [
    "FULL_GRADIENT",
    "PREVIOUS",
    "SNAPSHOT",
    "ErrorFeedback",
    "Estimator",
    "Increment",
    "LionMomentum",
    "Mars",
    "Momentum",
    "RawGradient",
    "Storm",
    "StormSvrg",
    "Svrg",
    "correction_now",
    "recipe_of",
    "state_dtype",
]
