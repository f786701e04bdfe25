"""One worker of soak.py: it trains, saves checkpoints, and tells what it has after each step."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import traceback
import zlib
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_signvr.checkpoint_files import load, save
from lightning_signvr.optimizers import SSVR, SignOptimizer, Signum
from lightning_signvr.optimizers.rank_states import resized, with_rank_states
from lightning_signvr.voting import MajorityVote

METHODS: dict[str, Callable[..., SignOptimizer]] = {"SSVR": SSVR, "Signum": Signum}
FAULTS = ("NaN in the batch", "inf in a gradient")
SPOILS = ("replica", "restore", "replay", "bytes", "votes", "memory", "fds", "threads", "loss")
BATCH, HIDDEN = 16, 128
TIMEOUT = timedelta(seconds=60)


class Task(NamedTuple):
    """What all workers are told.

    Attributes:
        folder: of the data, the checkpoint and what is written to stderr.
        steps: of the whole training.
        save_every: steps between checkpoints.
        nan_every: steps between faults of a worker, on average.
        lr: in the first step; it falls to 0.
        spoil: what to do wrong on purpose, of :data:`SPOILS`.
    """

    folder: Path
    steps: int
    seed: int
    method: str
    save_every: int
    nan_every: int
    lr: float
    spoil: frozenset[str]

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.pt"

    def fault(self, step: int, rank: int) -> str | None:
        """What is wrong with a worker's gradients in a step, counted from 1: a function of both alone."""
        draw = random.Random(f"{self.seed} {step} {rank}")
        return draw.choice(FAULTS) if draw.random() < 1 / self.nan_every else None

    def faulty(self, step: int, workers: int) -> list[int]:
        """The ranks with a fault in a step."""
        return [rank for rank in range(workers) if self.fault(step, rank) is not None]


class State(NamedTuple):
    """CRC-32 of what a worker has."""

    parameters: int
    optimizer: int


class Usage(NamedTuple):
    """Of a process: resident bytes, open file descriptors, threads."""

    memory: int
    fds: int
    threads: int


class Restored(NamedTuple):
    """A worker is ready for the step after this one."""

    step: int
    state: State


class Step(NamedTuple):
    """A worker has taken a step.

    Attributes:
        sent: bytes, of this step.
        nonfinite: the ranks that did not vote on something, as the vote says.
        abstentions: coordinates on which a worker did not vote, also as its estimate was 0.
    """

    step: int
    state: State
    loss: float
    sent: int
    nonfinite: list[int]
    abstentions: int
    usage: Usage


class Failed(NamedTuple):
    """A worker ends with an error."""

    text: str


class Done(NamedTuple):
    """A worker has taken all steps."""

    accuracy: float


def write_data(folder: Path) -> None:
    """Scikit-learn's digits, without the pixels that are the same in all of them."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    split = train_test_split(digits.data / 16, digits.target, test_size=360, random_state=0)
    images, test_images, labels, test_labels = map(torch.tensor, split)
    mean, deviation = images.mean(0), images.std(0)
    images, test_images = (
        ((each - mean) / deviation)[:, deviation > 0].float() for each in (images, test_images)
    )
    data = {"images": images, "labels": labels, "test_images": test_images, "test_labels": test_labels}
    save(data, folder / "data.pt")


def make_net(pixels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(pixels, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 10))


def crc(values: Any) -> int:
    """CRC-32 of a tree of tensors and plain values."""
    if isinstance(values, Tensor):
        return zlib.crc32(values.detach().contiguous().numpy().data)
    if isinstance(values, dict):
        return zlib.crc32(repr([(key, crc(values[key])) for key in sorted(values)]).encode())
    return zlib.crc32(repr(values).encode())


def work(connection: Connection, task: Task, rank: int, workers: int, life: int) -> None:
    """Train from the last checkpoint on, in the ``life``-th process of this rank."""
    errors = os.open(task.folder / "stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(errors, 2)  # the backend's, of connections that break
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    store = f"file://{task.folder}/store-{life}"
    try:
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=workers, timeout=TIMEOUT)
        accuracy = train(connection, task, life)
        dist.barrier()  # leave together
        dist.destroy_process_group()
        connection.send(Done(accuracy))
    except Exception as error:
        connection.send(Failed(str(error) if isinstance(error, RuntimeError) else traceback.format_exc()))
        os._exit(1)  # as the group is broken


def train(connection: Connection, task: Task, life: int) -> float:
    rank, workers = dist.get_rank(), dist.get_world_size()
    data = load(task.folder / "data.pt")
    torch.manual_seed(task.seed)
    net = make_net(data["images"].shape[1])
    vote = MajorityVote(topology="two_phase", seed=task.seed)
    options: dict[str, Any] = {"vote": vote, "maximize": "loss" in task.spoil}
    optimizer = METHODS[task.method](net.parameters(), task.lr, **options)
    first = restore(task, net, optimizer, workers)

    def state() -> State:
        return State(crc(net.state_dict()), crc(optimizer.state_dict()["state"]))

    connection.send(Restored(first, state()))
    hoard: list[Any] = []
    for step in range(first + 1, task.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = task.lr * (1 - (step - 1) / task.steps)
        fault = task.fault(step, rank)
        if "votes" in task.spoil and step % 10 == 0:
            fault = FAULTS[1]
        draw = torch.Generator().manual_seed(1_000_000 * rank + step)  # resumed runs see what comes next
        batch = torch.randint(len(data["images"]), (BATCH,), generator=draw)
        images, labels = data["images"][batch], data["labels"][batch]
        if fault == FAULTS[0]:
            images[0, 0] = torch.nan

        def closure(
            images: Tensor = images, labels: Tensor = labels, inf: bool = fault == FAULTS[1]
        ) -> float:
            optimizer.zero_grad()
            loss = cross_entropy(net(images), labels)
            loss.backward()
            if inf:
                gradient = next(net.parameters()).grad
                assert gradient is not None
                gradient[0, 0] = torch.inf
            return loss.item()

        sent = vote.traffic.bytes_sent
        loss = optimizer.step(closure)
        assert loss is not None
        assert vote.last is not None
        for spoil in task.spoil:
            do_wrong(spoil, step, task.steps, life, net, vote, hoard)
        sent = vote.traffic.bytes_sent - sent
        abstentions = workers * vote.last.layout.num_parameters - vote.last.counts.votes
        nonfinite = list(vote.last.nonfinite)
        connection.send(Step(step, state(), loss, sent, nonfinite, abstentions, usage()))
        if step % task.save_every == 0:
            states = with_rank_states(optimizer.state_dict(), torch.device("cpu"))
            if rank == 0:
                save({"net": net.state_dict(), "optimizer": states, "step": step}, task.checkpoint)
    with torch.no_grad():
        right = net(data["test_images"]).argmax(1) == data["test_labels"]
    return float(right.float().mean())


def restore(task: Task, net: nn.Module, optimizer: SignOptimizer, workers: int) -> int:
    """The step of the last checkpoint, which is loaded; 0 for none."""
    if not task.checkpoint.exists():
        return 0
    saved = load(task.checkpoint)
    net.load_state_dict(saved["net"])
    optimizer.load_state_dict(resized(saved["optimizer"], workers, "mean"))
    if "restore" in task.spoil:
        _change(net, 1e-3)
    return int(saved["step"])


def usage() -> Usage:
    """Of this process, as Linux tells it."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Usage(
        pages * os.sysconf("SC_PAGE_SIZE"),
        len(os.listdir("/proc/self/fd")),
        len(os.listdir("/proc/self/task")),
    )


def do_wrong(
    spoil: str, step: int, steps: int, life: int, net: nn.Module, vote: MajorityVote, hoard: list[Any]
) -> None:
    """What soak.py must find, at the end of a step."""
    if spoil == "replica" and step == steps // 2 and dist.get_rank() == 1:
        _change(net, 1e-3)
    if spoil == "replay":
        _change(net, 1e-5 * life)
    if spoil == "bytes":
        vote.traffic.bytes_sent += 8
    if spoil == "memory":
        hoard.append(b"x" * 2**18)
    if spoil == "fds":
        hoard.append(open(os.devnull))  # noqa: SIM115
    if spoil == "threads" and step % 10 == 0:
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()


def _change(net: nn.Module, by: float) -> None:
    with torch.no_grad():
        next(net.parameters()).view(-1)[0].add_(by)
