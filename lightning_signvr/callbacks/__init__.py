"""Layer 7: what people look at."""

from lightning_signvr.callbacks.monitor import SignVoteMonitor

__all__ = ["SignVoteMonitor"]
