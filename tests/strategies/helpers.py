"""A small model, its data and a quiet Trainer, for workers started by ``tests.workers.run_workers``."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader

import lightning_signvr
from lightning_signvr import MajorityVote, Signum

LR, MOMENTUM, LOSS_SCALE = 0.01, 0.9, 8.0
QUIET = {
    "accelerator": "cpu",
    "max_epochs": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}

Batch = tuple[Tensor, Tensor]


def signum(parameters: Iterable[Tensor]) -> Signum:
    """Signum with the hyper-parameters of these tests."""
    return Signum(parameters, lr=LR, momentum=MOMENTUM)


def signum_without_coins(parameters: Iterable[Tensor]) -> Signum:
    """The same with a vote that needs no random numbers."""
    return Signum(parameters, lr=LR, momentum=MOMENTUM, vote=MajorityVote(ties="positive"))


class Regression(L.LightningModule):
    """Two layers and the squared error; ``optimizer`` makes the optimizer from the parameters."""

    def __init__(
        self, optimizer: Callable[..., Any] = signum, seed: int = 0, net: nn.Module | None = None
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = net or nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
        self.optimizer = optimizer

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs, targets = batch
        return (self.net(inputs) - targets).pow(2).mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())


class Adversarial(Regression):
    """Two nets with an optimizer each; the second steps on every other batch only."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed)
        self.critic = nn.Linear(1, 1)
        self.automatic_optimization = False

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        inputs, targets = batch
        critic, generator = self.optimizers()
        self.toggle_optimizer(critic)
        self._step(critic, self.critic(targets).mean() - self.critic(self.net(inputs).detach()).mean())
        self.untoggle_optimizer(critic)
        if batch_idx % 2 == 0:
            self.toggle_optimizer(generator)
            self._step(generator, self.critic(self.net(inputs)).mean())
            self.untoggle_optimizer(generator)

    def _step(self, optimizer: Any, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(optimizer, 0.5)
        optimizer.step()

    def configure_optimizers(self) -> list[Optimizer]:
        return [signum(self.critic.parameters()), SGD(self.net.parameters(), lr=LR)]


def batches(rank: int, count: int) -> list[Batch]:
    """Batches of one worker; workers differ in inputs and in the function to learn."""
    generator = torch.Generator().manual_seed(100 + rank)
    weights = torch.randn(4, 1, generator=generator) + torch.ones(4, 1)
    inputs = torch.randn(count, 8, 4, generator=generator)
    return [(part, part @ weights) for part in inputs]


def loader(data: list[Any]) -> DataLoader[Any]:
    """The batches as they are, in their order."""
    return DataLoader(data, batch_size=None)  # type: ignore[arg-type]


def make_trainer(strategy: Any = "sign_vote", **options: Any) -> L.Trainer:
    """A Trainer over all workers of the process group that writes nothing."""
    return L.Trainer(**{**QUIET, "devices": dist.get_world_size(), "strategy": strategy, **options})


def fit(module: L.LightningModule, data: list[Any], strategy: Any = "sign_vote", **options: Any) -> L.Trainer:
    """Train for an epoch on ``data``, this worker's own batches."""
    trainer = make_trainer(strategy, **options)
    trainer.fit(module, loader(data))
    return trainer


def float16() -> dict[str, Any]:
    """Trainer options: ``precision="16-mixed"`` would mean bfloat16 on the CPU."""
    scaler = torch.amp.GradScaler("cpu", init_scale=LOSS_SCALE)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=scaler)]}


def flat(tensors: Iterable[Tensor]) -> np.ndarray:
    """All values in one float64 array (exact for narrower types), which can be sent between processes."""
    return np.concatenate([tensor.detach().double().numpy().ravel() for tensor in tensors])


def parameters_of(module: nn.Module) -> np.ndarray:
    return flat(module.parameters())


def state_of(optimizer: torch.optim.Optimizer) -> np.ndarray:
    """All tensors of an optimizer's state."""
    states = optimizer.state_dict()["state"].values()
    return flat(value for state in states for _, value in sorted(state.items()) if isinstance(value, Tensor))


def same_on_all(values: Iterable[np.ndarray]) -> bool:
    """Whether what the workers returned is the same to the last bit."""
    first, *others = values
    return all(np.array_equal(first, other) for other in others)


def same(found: Any, expected: Any) -> bool:
    """Whether two trees of tensors and plain values are equal, types and dtypes included."""
    if isinstance(expected, Tensor):
        return found.dtype == expected.dtype and torch.equal(found, expected)
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(map(same, found, expected))
    return type(found) is type(expected) and bool(found == expected)


class LogLines(logging.Handler):
    """Collects what the library logs, in ``lines``."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        logging.getLogger("lightning_signvr").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def environment() -> dict[str, str]:
    """For subprocesses: the library can be imported, and one thread each."""
    root = str(Path(lightning_signvr.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
