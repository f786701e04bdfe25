"""Layer 6: how Hugging Face's Trainer hands gradients to the optimizers."""

try:
    import transformers as _transformers  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        "lightning_signvr.transformers needs Hugging Face's transformers: "
        'pip install "lightning-signvr[transformers]"'
    ) from error

from lightning_signvr.transformers.trainer import SignVoteTrainer, SignVoteTrainerMixin

__all__ = ["SignVoteTrainer", "SignVoteTrainerMixin"]
