"""The same model, data, seed and optimizer give the same parameters to the last bit in every kind of loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, SequentialSampler, TensorDataset, default_collate

from lightning_signvr import keep_gradients_local
from lightning_signvr.accelerate import sign_vote
from lightning_signvr.optimizers import SSVR
from lightning_signvr.optimizers.clipping import clip_grad_norm_
from lightning_signvr.replay import Replay
from tests.accelerate.helpers import new_accelerator
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

WORKERS, STEPS, ACCUMULATE, MAX_NORM = 2, 30, 2, 0.5
BATCH = 8  # samples in each of `batches`
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


def data_of_all() -> TensorDataset:
    """The workers' batches by turns, as Accelerate deals them out."""
    dealt = zip(*(batches(rank, STEPS * ACCUMULATE) for rank in range(WORKERS)), strict=True)
    inputs, targets = zip(*(batch for turn in dealt for batch in turn), strict=True)
    return TensorDataset(torch.cat(inputs), torch.cat(targets))


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
    fabric = Fabric(accelerator="cpu", devices=WORKERS, strategy="sign_vote")
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


def in_accelerate(rank: int, net: nn.Module, make_optimizer: Callable[[Any], Any]) -> None:
    accelerator = new_accelerator(gradient_accumulation_steps=ACCUMULATE)
    sv = sign_vote(accelerator)
    everything = DataLoader(data_of_all(), BATCH, generator=torch.Generator())
    model, optimizer, loader = accelerator.prepare(net, make_optimizer(net.parameters()), everything)
    torch.manual_seed(rank)
    for batch in loader:
        with accelerator.accumulate(model):
            sv.backward(lambda batch=batch: loss_of(model, batch))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            optimizer.zero_grad()


def in_hugging_face(rank: int, net: nn.Module, make_optimizer: Callable[[Any], Any]) -> None:
    from transformers import TrainerCallback, TrainingArguments

    from lightning_signvr.transformers import SignVoteTrainer

    class Trainer(SignVoteTrainer):  # type: ignore[misc]
        def compute_loss(self, model: nn.Module, inputs: dict[str, Any], **_: Any) -> Tensor:
            return loss_of(model, inputs["batch"])

        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    class Seeding(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 0:  # the Trainer has drawn numbers of its own by now
                torch.manual_seed(rank)

    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            use_cpu=True,
            num_train_epochs=1,
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=ACCUMULATE,
            max_grad_norm=MAX_NORM,
            lr_scheduler_type="constant",
            remove_unused_columns=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        Trainer(
            net,
            arguments,
            data_collator=lambda samples: {"batch": default_collate(samples)},
            train_dataset=data_of_all(),
            optimizers=(make_optimizer(net.parameters()), None),
            callbacks=[Seeding()],
        ).train()


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
    "Accelerate": in_accelerate,
    **({"Hugging Face Trainer": in_hugging_face} if find_spec("transformers") else {}),
    "DDP": in_ddp(),
    "DDP, bucket views": in_ddp(gradient_as_bucket_view=True),
    "DDP, unused parameters": in_ddp(find_unused_parameters=True),
}
AVERAGING = ["Lightning", "Hugging Face Trainer"]
"""Those that average the buffers at the end."""


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
    return run_workers(train_in_each, WORKERS)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_parameters_are_the_same(optimizer: str, loop: str, results: list[Any]) -> None:
    for rank, own in enumerate(results):
        parameters, _ = own[optimizer, loop]
        np.testing.assert_array_equal(parameters, own[optimizer, "plain"][0], err_msg=f"rank {rank}")
    assert same_on_all(own[optimizer, loop][0] for own in results)


@pytest.mark.parametrize("loop", [loop for loop in LOOPS if loop not in AVERAGING])
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
