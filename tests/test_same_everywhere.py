"""The same model, data, seed and optimizer give the same parameters to the last bit in every kind of loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from lightning_signvr import keep_gradients_local
from lightning_signvr.optimizers import SSVR
from lightning_signvr.optimizers.clipping import clip_grad_norm_
from lightning_signvr.replay import Replay
from tests.strategies.helpers import (
    LR,
    Batch,
    Regression,
    batches,
    flat,
    make_trainer,
    parameters_of,
    same_on_all,
    signum,
)
from tests.workers import run_workers

STEPS, ACCUMULATE, MAX_NORM = 30, 2, 0.5
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "Signum": signum,
    "SSVR": lambda parameters: SSVR(parameters, lr=LR, beta=0.2),
}


def make_net() -> nn.Sequential:
    """With what a second pass could get wrong: random numbers and buffers."""
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 1))


def data(rank: int) -> DataLoader[Batch]:
    # a generator of its own, or iterating would use up numbers of the global one
    own = batches(rank, STEPS * ACCUMULATE)
    return DataLoader(own, batch_size=None, generator=torch.Generator())  # type: ignore[arg-type]


def loss_of(net: nn.Module, batch: Batch) -> Tensor:
    inputs, targets = batch
    loss: Tensor = (net(inputs) - targets).pow(2).mean()
    return loss


def microbatches(rank: int) -> Iterator[tuple[Batch, bool, bool]]:
    """Each with whether it is the first or the last of a step."""
    for index, batch in enumerate(data(rank)):
        yield batch, index % ACCUMULATE == 0, (index + 1) % ACCUMULATE == 0


def in_lightning(rank: int, net: nn.Module, make_optimizer: Callable[[Any], Any]) -> None:
    module = Regression(make_optimizer, net=net)
    torch.manual_seed(rank)
    trainer = make_trainer(accumulate_grad_batches=ACCUMULATE, gradient_clip_val=MAX_NORM)
    trainer.fit(module, data(rank))


def in_fabric(rank: int, net: nn.Module, make_optimizer: Callable[[Any], Any]) -> None:
    torch.manual_seed(rank)
    fabric = Fabric(accelerator="cpu", devices=2, strategy="sign_vote")
    fabric.launch()
    model, optimizer = fabric.setup(net, make_optimizer(net.parameters()))
    replay = Replay(optimizer, model)
    for batch, first, last in microbatches(rank):
        if first:
            optimizer.zero_grad()
        with fabric.no_backward_sync(model, enabled=not last):
            replay.backward(lambda batch=batch: loss_of(model, batch) / ACCUMULATE, fabric.backward)
        if last:
            fabric.clip_gradients(model, optimizer, max_norm=MAX_NORM)
            optimizer.step()


def plainly(rank: int, net: nn.Module, make_optimizer: Callable[[Any], Any]) -> None:
    torch.manual_seed(rank)
    optimizer = make_optimizer(net.parameters())
    replay = Replay(optimizer, net)
    for batch, first, last in microbatches(rank):
        if first:
            optimizer.zero_grad()
        with net.no_sync() if isinstance(net, DistributedDataParallel) and not last else nullcontext():
            replay.backward(lambda batch=batch: loss_of(net, batch) / ACCUMULATE)
        if last:
            clip_grad_norm_(optimizer, MAX_NORM)
            optimizer.step()


def in_ddp(**options: Any) -> Callable[..., None]:
    def train(rank: int, net: nn.Module, make_optimizer: Callable[[Any], Any]) -> None:
        model = DistributedDataParallel(net, broadcast_buffers=False, **options)
        plainly(rank, keep_gradients_local(model), make_optimizer)

    return train


LOOPS: dict[str, Callable[..., None]] = {
    "plain": plainly,
    "Lightning": in_lightning,
    "Fabric": in_fabric,
    "DDP": in_ddp(),
    "DDP, bucket views": in_ddp(gradient_as_bucket_view=True),
    "DDP, unused parameters": in_ddp(find_unused_parameters=True),
}


def train_in_each(rank: int) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    results = {}
    for name, make_optimizer in OPTIMIZERS.items():
        for loop, train in LOOPS.items():
            torch.manual_seed(0)  # the plain loop relies on it, the others broadcast
            net = make_net()
            train(rank, net, make_optimizer)
            results[name, loop] = parameters_of(net), flat(b.double() for b in net.buffers())
    return results


@pytest.fixture(scope="module")
def results() -> list[dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]]:
    return run_workers(train_in_each, 2)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_parameters_are_the_same(optimizer: str, loop: str, results: list[Any]) -> None:
    for rank, own in enumerate(results):
        parameters, _ = own[optimizer, loop]
        np.testing.assert_array_equal(parameters, own[optimizer, "plain"][0], err_msg=f"rank {rank}")
    assert same_on_all(own[optimizer, loop][0] for own in results)


@pytest.mark.parametrize("loop", [loop for loop in LOOPS if loop != "Lightning"])  # which averages them
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_buffers_are_the_same(optimizer: str, loop: str, results: list[Any]) -> None:
    for own in results:
        np.testing.assert_array_equal(own[optimizer, loop][1], own[optimizer, "plain"][1])
    assert not same_on_all(own[optimizer, loop][1] for own in results)


def test_the_methods_differ_and_move(results: list[Any]) -> None:
    torch.manual_seed(0)
    start = parameters_of(make_net())
    first, second = (results[0][name, "plain"][0] for name in OPTIMIZERS)
    assert not np.array_equal(first, second)
    assert np.abs(first - start).max() > 5 * LR
