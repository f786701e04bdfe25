"""Layer 7: what people look at, and what a method needs around the training loop."""

from lightning_signvr.callbacks.monitor import SignVoteMonitor
from lightning_signvr.callbacks.snapshot import SnapshotGradient

__all__ = ["SignVoteMonitor", "SnapshotGradient"]
