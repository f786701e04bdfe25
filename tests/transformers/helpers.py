"""A tiny language model trained by a Trainer, and the same in a loop of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from lightning_signvr import MajorityVote, Signum, vote_gradients
from lightning_signvr.amp import SharedGradScaler
from lightning_signvr.optimizers import SSVR, DVRSign, SignOptimizer
from lightning_signvr.transformers import SignVoteTrainer

WORKERS, ACCUMULATE, BATCH, LENGTH, WORDS, SEED = 2, 2, 3, 8, 20, 5
IGNORED = -100
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "Signum": lambda parameters: Signum(parameters, lr=0.01),
    "SSVR": lambda parameters: SSVR(parameters, lr=0.01, beta=0.3),
    "DVRSign": lambda parameters: DVRSign(parameters, lr=0.01),
    "AdamW": lambda parameters: AdamW(parameters, lr=0.01),
}


def build(seed: int = 0) -> nn.Module:
    """With dropout, so that a second pass could get it wrong."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=WORDS,
        max_position_embeddings=LENGTH,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        attention_dropout=0.2,
    )
    return LlamaForCausalLM(config)


def data(steps: int) -> list[dict[str, Tensor]]:
    """Sentences of different lengths, for all workers and microbatches of so many steps."""
    generator = torch.Generator().manual_seed(1)
    samples = []
    for _ in range(steps * ACCUMULATE * WORKERS * BATCH):
        words = torch.randint(1, WORDS, (LENGTH,), generator=generator)
        length = int(torch.randint(2, LENGTH + 1, (), generator=generator))
        labels = words.where(torch.arange(LENGTH) < length, torch.tensor(IGNORED))
        samples.append({"input_ids": words, "labels": labels})
    return samples


class Normalized(nn.Module):
    """A model with buffers, which is none of transformers' own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 1)
        )  # fmt: skip

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.layers(x)[:, 0] - labels).square().mean()}


def points(count: int) -> list[dict[str, Tensor]]:
    """What it learns."""
    inputs = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    return [{"x": x, "labels": x.sum().sin()} for x in inputs]


class Seeded(SignVoteTrainer):
    """Draws the same dropout masks as :func:`by_hand`; a loss may overflow."""

    vote_rules = {"seed": SEED}  # noqa: RUF012
    overflow = -1
    number = -1

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        self.number += 1
        torch.manual_seed(100 * self.number + self.args.process_index)
        return super().training_step(*args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().compute_loss(*args, **kwargs)
        overflows = self.number == self.overflow and self.args.process_index == WORKERS - 1
        return loss * float("inf") if overflows else loss


def arguments(folder: str, **changes: Any) -> TrainingArguments:
    options = {
        "use_cpu": True,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": ACCUMULATE,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 2,
        "log_level": "error",
    }
    return TrainingArguments(folder, **{**options, **changes})


def through_trainer(
    rank: int, folder: str, name: str, steps: int, overflow: int = -1, **changes: Any
) -> Seeded:
    """A Trainer that has trained; ``overflow``: the microbatch whose loss is infinite on the last rank."""
    model = build(seed=rank)  # rank 0's counts
    optimizer = OPTIMIZERS[name](model.parameters())
    trainer = Seeded(
        model, arguments(folder, **changes), train_dataset=data(steps), optimizers=(optimizer, None)
    )
    trainer.overflow = overflow
    if overflow >= 0:  # Accelerate itself would not scale the loss on a CPU
        trainer.accelerator.scaler = SharedGradScaler("cpu", init_scale=8.0)
    trainer.train()
    return trainer


def by_hand(
    rank: int, name: str, steps: int, overflow: int = -1, max_grad_norm: float = 1.0, bf16: bool = False
) -> np.ndarray:
    """The parameters after the same steps without a Trainer."""
    model = build()
    parameters = list(model.parameters())
    optimizer = OPTIMIZERS[name](parameters)
    if isinstance(optimizer, SignOptimizer):
        optimizer.vote = type(optimizer).vote_class(seed=SEED)
    else:
        vote_gradients(optimizer, MajorityVote(seed=SEED))
    schedule = LambdaLR(optimizer, lambda step: 1 - step / steps)
    samples = data(steps)
    batches = [samples[start : start + BATCH] for start in range(0, len(samples), BATCH)]
    for step in range(steps):
        everybodys = batches[step * ACCUMULATE * WORKERS :][: ACCUMULATE * WORKERS]
        tokens = sum((s["labels"][1:] != IGNORED).sum() for batch in everybodys for s in batch)
        points = ["here"]
        if "previous" in getattr(optimizer, "anchors", {}) and step > 0:
            points.append("previous")
        for point in points:
            for index, batch in enumerate(everybodys[rank::WORKERS]):
                torch.manual_seed(100 * (step * ACCUMULATE + index) + rank)
                inputs = torch.stack([sample["input_ids"] for sample in batch])
                targets = torch.stack([sample["labels"] for sample in batch])
                if point == "here":
                    (loss_of(model, inputs, targets, bf16) / tokens * WORKERS).backward()
                else:
                    with optimizer.at(point):
                        (loss_of(model, inputs, targets, bf16) / tokens * WORKERS).backward()
        if step != overflow // ACCUMULATE:
            if max_grad_norm > 0:
                norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
                if len(points) > 1:
                    for gradient in optimizer.anchor_gradients():
                        gradient *= min(1.0, max_grad_norm / (norm + 1e-6))
            optimizer.step()
            schedule.step()
        optimizer.zero_grad()
    return flat(parameters)


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor, bf16: bool) -> Tensor:
    """Summed over the words."""
    model.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(inputs).logits
    following = nn.functional.pad(targets, (0, 1), value=IGNORED)[:, 1:]
    return nn.functional.cross_entropy(
        logits.float().flatten(0, 1), following.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def flat(tensors: Iterable[Tensor]) -> np.ndarray:
    return np.concatenate([tensor.detach().double().numpy().ravel() for tensor in tensors])


def state_of(optimizer: Optimizer) -> np.ndarray:
    """All tensors in an optimizer's state."""
    own = optimizer.state_dict()["state"].values()
    return flat(value for state in own for value in state.values() if isinstance(value, Tensor))


os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is looked up
