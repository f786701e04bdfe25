"""A small model trained through Accelerate, and the same in a loop of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from lightning_signvr import MajorityVote, Signum, vote_gradients
from lightning_signvr.accelerate import sign_vote
from lightning_signvr.amp import SharedGradScaler
from lightning_signvr.optimizers import (
    SSVR,
    SSVRFS,
    AnchoredOptimizer,
    DVRSign,
    SignOptimizer,
    SnapshotOptimizer,
)
from lightning_signvr.replay import Replay

WORKERS, ACCUMULATE, BATCH, SEED, LOSS_SCALE = 2, 2, 4, 5, 8.0
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "Signum": lambda parameters: Signum(parameters, lr=0.01, momentum=0.9),
    "SSVR": lambda parameters: SSVR(parameters, lr=0.01, beta=0.3),
    "DVRSign": lambda parameters: DVRSign(parameters, lr=0.01),  # with a vote of another kind
    "SSVRFS": lambda parameters: SSVRFS(parameters, lr=0.01, beta=0.3, period=7),  # three points
    "AdamW": lambda parameters: AdamW(parameters, lr=0.01),  # which knows nothing of votes
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def build(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 1)
    )  # fmt: skip


def data(steps: int) -> TensorDataset:
    """For all workers and microbatches of so many steps."""
    count = steps * ACCUMULATE * WORKERS * BATCH
    inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(1))
    return TensorDataset(inputs, inputs.sum(1, keepdim=True).sin())


def loss_of(model: Callable[[Tensor], Tensor], batch: Iterable[Tensor]) -> Tensor:
    inputs, targets = batch
    return (model(inputs) - targets).pow(2).mean()


def new_accelerator(precision: str = "no", **options: Any) -> Accelerator:
    """As in a fresh process. Accelerate itself would not scale the loss for fp16 on a CPU."""
    GradientState._reset_state()
    AcceleratorState._reset_state()
    options = {"gradient_accumulation_steps": ACCUMULATE, **options}
    accelerator = Accelerator(cpu=True, mixed_precision=precision, **options)
    if precision == "fp16":
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=LOSS_SCALE)
    return accelerator


def take_snapshot(optimizer: Optimizer, model: nn.Module, rank: int) -> None:
    """Where it is due, of some data of this worker's."""
    if isinstance(optimizer, SnapshotOptimizer) and optimizer.snapshot_due:
        with optimizer.take_snapshot():
            loss_of(model, data(2)[rank::WORKERS]).backward()


def through_accelerate(
    rank: int, name: str, steps: int, clip: float | None = None, precision: str = "no", overflow: int = -1
) -> np.ndarray:
    """The parameters after a training script with sign_vote.

    ``overflow``: the microbatch whose loss is infinite on the last rank.
    """
    accelerator = new_accelerator(precision)
    sv = sign_vote(accelerator, seed=SEED)
    model = build(seed=rank)  # rank 0's counts
    model, optimizer, loader = accelerator.prepare(
        model, OPTIMIZERS[name](model.parameters()), DataLoader(data(steps), BATCH)
    )
    for number, batch in enumerate(loader):
        torch.manual_seed(100 * number + rank)
        factor = float("inf") if rank == WORKERS - 1 and number == overflow else 1.0
        take_snapshot(sv.optimizers[0], model, rank)
        with accelerator.accumulate(model):
            sv.backward(lambda batch=batch, factor=factor: loss_of(model, batch) * factor)
            if clip is not None and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            if number // ACCUMULATE == overflow // ACCUMULATE and accelerator.sync_gradients:
                assert optimizer.step_was_skipped == (overflow >= 0)
            optimizer.zero_grad()
    return flat(model.parameters())


def by_hand(
    rank: int, name: str, steps: int, clip: float | None = None, precision: str = "no", overflow: int = -1
) -> np.ndarray:
    """The same without Accelerate."""
    model = build()
    parameters = list(model.parameters())
    optimizer = OPTIMIZERS[name](parameters)
    if isinstance(optimizer, SignOptimizer):
        optimizer.vote = type(optimizer).vote_class(seed=SEED)
    else:
        vote_gradients(optimizer, MajorityVote(seed=SEED))
    scaler = SharedGradScaler("cpu", init_scale=LOSS_SCALE, enabled=precision == "fp16")
    replay = Replay(optimizer, model)

    def forward(inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", DTYPES.get(precision, torch.bfloat16), enabled=precision != "no"):
            output: Tensor = model(inputs)
        return output.float()

    batches = [tuple(tensor.split(BATCH)) for tensor in data(steps).tensors]
    own = list(zip(*batches, strict=True))[rank::WORKERS]
    for number, batch in enumerate(own):
        torch.manual_seed(100 * number + rank)
        factor = float("inf") if rank == WORKERS - 1 and number == overflow else 1.0
        take_snapshot(optimizer, model, rank)
        replay.backward(
            lambda batch=batch, factor=factor: loss_of(forward, batch) * factor,
            lambda loss: scaler.scale(loss / ACCUMULATE).backward(),
        )
        if number % ACCUMULATE == ACCUMULATE - 1:
            if clip is not None:
                scaler.unscale_(optimizer)
                norm = torch.nn.utils.clip_grad_norm_(parameters, clip)
                if isinstance(optimizer, AnchoredOptimizer):
                    for gradient in optimizer.anchor_gradients():
                        gradient *= min(1.0, clip / (norm + 1e-6))
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    return flat(parameters)


def flat(tensors: Iterable[Tensor]) -> np.ndarray:
    return np.concatenate([tensor.detach().double().numpy().ravel() for tensor in tensors])
