"""Layer 7: is a sign vote worth it here? A cost model, measurements for it, and plain advice."""

from lightning_signvr.planner.breakeven import break_even
from lightning_signvr.planner.cost import Prediction, Problem, predict
from lightning_signvr.planner.figures import Cluster, Costs, Link
from lightning_signvr.planner.methods import METHODS, Method
from lightning_signvr.planner.models import assumed_shapes, load_shapes

__all__ = [
    "METHODS",
    "Cluster",
    "Costs",
    "Link",
    "Method",
    "Prediction",
    "Problem",
    "assumed_shapes",
    "break_even",
    "load_shapes",
    "predict",
]
