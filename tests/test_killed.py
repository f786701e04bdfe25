"""Kill -9 one worker after a checkpoint, resume: the run ends as the uninterrupted one, to the last bit.

Fabric, Accelerate and the Hugging Face Trainer have tests of the same in their folders.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.optim import Optimizer

from lightning_signvr.module_state import average_buffers
from lightning_signvr.optimizers import SSVR
from lightning_signvr.optimizers.rank_states import with_rank_states
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
    state_of,
)
from tests.workers import WorkerError, run_workers

WORKERS, STEPS, ACCUMULATE = 2, 8, 2
SAVED_AT, KILLED_AT = 4, 5  # a checkpoint after so many steps; the last worker is killed after so many
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "Signum": signum,
    "SSVR": lambda parameters: SSVR(parameters, lr=LR, beta=0.2),
}


class End(NamedTuple):
    parameters: np.ndarray
    buffers: np.ndarray
    state: np.ndarray


def make_net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 1))


def begin_microbatch(rank: int, index: int, is_killed: bool) -> None:
    """Die where it is due; else let the dropout masks depend on the microbatch alone."""
    if is_killed and rank == WORKERS - 1 and index == KILLED_AT * ACCUMULATE + 1:
        os.kill(os.getpid(), signal.SIGKILL)
    torch.manual_seed(1000 * rank + index)


def end_of(net: nn.Module, optimizer: Optimizer) -> End:
    return End(parameters_of(net), flat(buffer.double() for buffer in net.buffers()), state_of(optimizer))


def plainly(rank: int, name: str, path: str, resume: bool, is_killed: bool) -> End:
    net = make_net(seed=9 if resume else 0)
    optimizer = OPTIMIZERS[name](net.parameters())
    first = 0
    if resume:
        saved = torch.load(path, weights_only=True)
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])  # takes this rank's
        first = saved["step"]
    data, replay = batches(rank, STEPS * ACCUMULATE), Replay(optimizer, net)
    for step in range(first, STEPS):
        optimizer.zero_grad()
        for index in range(step * ACCUMULATE, (step + 1) * ACCUMULATE):
            begin_microbatch(rank, index, is_killed)
            inputs, targets = data[index]
            replay.backward(lambda x=inputs, y=targets: (net(x) - y).pow(2).mean() / ACCUMULATE)
        optimizer.step()
        if step + 1 == SAVED_AT:
            average_buffers(net)
            state = with_rank_states(optimizer.state_dict(), torch.device("cpu"))
            if rank == 0:
                torch.save({"net": net.state_dict(), "optimizer": state, "step": step + 1}, path)
    return end_of(net, optimizer)


class Resumable:
    """Batches in their order; a checkpoint in the middle of an epoch keeps how many were read."""

    def __init__(self, data: list[Batch]) -> None:
        self.data, self.read, self.skip = data, 0, 0

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Batch]:
        self.read, self.skip = self.skip, 0
        while self.read < len(self.data):
            self.read += 1
            yield self.data[self.read - 1]

    def state_dict(self) -> dict[str, int]:
        return {"read": self.read}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.skip = state["read"]


class Killable(L.Callback):
    def __init__(self, is_killed: bool) -> None:
        self.is_killed = is_killed

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        begin_microbatch(trainer.global_rank, args[-1], self.is_killed)


def in_lightning(rank: int, name: str, path: str, resume: bool, is_killed: bool) -> End:
    folder, filename = os.path.split(path)
    checkpoint = ModelCheckpoint(
        folder, filename, every_n_train_steps=SAVED_AT, save_top_k=-1, enable_version_counter=False
    )
    checkpoint.FILE_EXTENSION = ""
    trainer = make_trainer(
        accumulate_grad_batches=ACCUMULATE,
        enable_checkpointing=not resume,
        callbacks=[Killable(is_killed), *([] if resume else [checkpoint])],
    )
    module = Regression(OPTIMIZERS[name], net=make_net(seed=9 if resume else 0))
    data = Resumable(batches(rank, STEPS * ACCUMULATE))
    trainer.fit(module, data, ckpt_path=path if resume else None)
    assert trainer.global_step == STEPS
    return end_of(module, trainer.optimizers[0])


LOOPS: dict[str, Callable[..., End]] = {"plain": plainly, "Lightning": in_lightning}


def train(rank: int, loop: str, name: str, path: str, resume: bool = False, is_killed: bool = False) -> End:
    return LOOPS[loop](rank, name, path, resume, is_killed)


def resume_and_train_whole(rank: int, loop: str, name: str, killed: str, whole: str) -> tuple[End, End]:
    return train(rank, loop, name, killed, resume=True), train(rank, loop, name, whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("loop", LOOPS)
def test_a_killed_run_resumes_as_the_uninterrupted_one(loop: str, name: str, tmp_path: Path) -> None:
    killed, whole = str(tmp_path / "killed.ckpt"), str(tmp_path / "whole.ckpt")
    with pytest.raises(WorkerError, match="rank 1: died without a word") as error:
        run_workers(train, WORKERS, loop, name, killed, False, True)
    assert "rank 0: Traceback" in str(error.value)  # the other one fails too, rather than wait

    ends = run_workers(resume_and_train_whole, WORKERS, loop, name, killed, whole)
    for rank, (resumed, expected) in enumerate(ends):
        for field, got, wanted in zip(End._fields, resumed, expected, strict=True):
            np.testing.assert_array_equal(got, wanted, err_msg=f"{field} of rank {rank}")
    assert same_on_all(resumed.parameters for resumed, _ in ends)
    assert not same_on_all(resumed.state for resumed, _ in ends)
