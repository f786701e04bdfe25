"""A Trainer whose optimizer votes."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor, nn

from lightning_signvr.accelerate import SignVote, sign_vote
from lightning_signvr.accelerate.entry import unwrap
from lightning_signvr.replay import Replay
from lightning_signvr.transformers.checks import check_arguments

_Base: Any = object  # a transformers.Trainer, of which mypy sees nothing


class SignVoteTrainerMixin(_Base):  # type: ignore[misc]
    """Makes any kind of :class:`transformers.Trainer` train by votes; has no ``__init__``.

    Put it first: ``class VotingSeq2SeqTrainer(SignVoteTrainerMixin, Seq2SeqTrainer): pass``. What it does is
    said in :class:`SignVoteTrainer`.

    Attributes:
        vote_rules: ``ties`` and what else :func:`~lightning_signvr.accelerate.sign_vote` takes, for an
            optimizer that was not given a vote of its own; change them in a subclass.
        sign_vote: the :class:`~lightning_signvr.accelerate.SignVote` of the Trainer's Accelerator.
    """

    vote_rules: dict[str, Any] = {}  # noqa: RUF012
    sign_vote: SignVote

    def create_accelerator_and_postprocess(self) -> None:
        """As ever, and what the Accelerator prepares will vote."""
        check_arguments(self.args)
        super().create_accelerator_and_postprocess()
        self.sign_vote = sign_vote(self.accelerator, **self.vote_rules)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As ever; ends with buffers averaged, so that rank 0 may save the model alone."""
        self.model_wrapped = self.model  # not what evaluate() or train() has compiled: that is not prepared
        result = super().train(*args, **kwargs)
        self.sign_vote.average_buffers()
        return result

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """As ever, and once more at each other point that the optimizer compares."""
        optimizer = unwrap(self.optimizer)
        if all(parameter.grad is None for parameter in model.parameters()):  # a new step
            optimizer.zero_grad()  # the Trainer clears .grad alone, also after a step that fp16 skipped
        step = super().training_step
        return Replay(optimizer, model).backward(
            lambda: step(model, copy(inputs), *args, **kwargs),
            lambda loss: None,  # the step has run the backward pass
        )

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As ever, with buffers averaged."""
        self.sign_vote.average_buffers()
        return super().evaluation_loop(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As ever; beside the loss, what the votes decided and cost."""
        if "loss" in logs:
            logs = {**logs, **self.sign_vote.metrics()}
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.sign_vote.average_buffers()
        super()._save_checkpoint(*args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        Path(output_dir).mkdir(parents=True, exist_ok=True)  # rank 0 may not be there yet
        self.sign_vote.write_states(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        # the Trainer starts an optimizer anew whose state was not saved (save_only_model=True)
        if checkpoint is None or not (Path(checkpoint) / "optimizer.pt").exists():
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        self.sign_vote.read_states(checkpoint)
        super()._load_optimizer_and_scheduler(checkpoint)
        self.sign_vote.apply_loaded()


class SignVoteTrainer(SignVoteTrainerMixin, transformers.Trainer):  # type: ignore[misc]
    """A :class:`transformers.Trainer` that sends one bit per parameter in each direction.

    Everything is as in the Trainer, but:

    * the model is not wrapped in DistributedDataParallel: gradients stay each worker's own, and all start
      from rank 0's parameters;
    * ``optimizer.step()`` votes. An optimizer of this library votes on its own estimate; any other, as the
      default AdamW, steps on the voted signs of the gradients, which the log says once;
    * methods that compare two gradients (SSVR, DVRSign) get the second one: ``training_step``, and with it
      ``compute_loss``, runs again at the other point, on the same samples with the same dropout masks;
    * ``max_grad_norm`` clips each worker's gradient by its own norm before the vote, and gradients at other
      points by the same coefficient;
    * a checkpoint holds every worker's own optimizer state, in ``sign_vote_<rank>.bin``;
    * the logs beside the loss hold :meth:`~lightning_signvr.accelerate.SignVote.metrics`.

    Args:
        all: as for :class:`transformers.Trainer`. Choose the optimizer by ``optimizer_cls_and_kwargs=(Signum,
            {"lr": 1e-4})`` or ``optimizers=(Signum(model.parameters(), lr=1e-4), None)``.

    Raises:
        ValueError: DeepSpeed, FSDP, a model that is split, or several GPUs in one process.
        RuntimeError: several processes that would train alone, or a checkpoint of another number of workers.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from transformers import TrainingArguments
        >>> from lightning_signvr import Signum
        >>> class Regression(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.linear = torch.nn.Linear(3, 1)
        ...     def forward(self, x, labels):
        ...         return {"loss": (self.linear(x)[:, 0] - labels).square().mean()}
        >>> data = [{"x": x, "labels": x.sum()} for x in torch.randn(32, 3)]
        >>> options = {"use_cpu": True, "max_steps": 3, "report_to": [], "disable_tqdm": True}
        >>> with TemporaryDirectory() as folder:
        ...     trainer = SignVoteTrainer(
        ...         Regression(),
        ...         TrainingArguments(folder, **options),
        ...         train_dataset=data,
        ...         optimizer_cls_and_kwargs=(Signum, {"lr": 0.01}),
        ...     )
        ...     result = trainer.train()  # doctest: +ELLIPSIS
        {'train_runtime': ...}
        >>> trainer.sign_vote.votes[0].step
        3
    """
