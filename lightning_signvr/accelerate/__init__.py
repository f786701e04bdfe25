"""Layer 6: how Hugging Face Accelerate hands gradients to the optimizers."""

from lightning_signvr.accelerate.entry import SignVote, sign_vote

__all__ = ["SignVote", "sign_vote"]
