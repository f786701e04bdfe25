"""One rank of ``benchmarks/link.py``: trains by one method, some steps at a time, when it is told to.

Orders and answers are files in a folder: ``go-3`` holds the number of steps of visit 3, and ``answer-3-0``
what rank 0 measured in it. Between visits the process sleeps, so that methods can take turns.
"""

# no `from __future__ import annotations`: DDP compares a hook's annotations with the types themselves
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from models import MODELS, Batch, Model
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

LR = 1e-4


class Pace:
    """Waits for orders between visits, and measures the steps of a visit.

    Args:
        folder: where orders and answers are.
        traffic: of the votes, once there are any; None for methods without votes.
    """

    def __init__(self, folder: Path, traffic: Callable[[], Any] | None = None) -> None:
        self.folder, self.traffic = folder, traffic
        self.visit = 0
        self._profiler: torch.profiler.profile | None = None

    def begin(self) -> None:
        """Wait for the next order, then for the other ranks."""
        order = self.folder / f"go-{self.visit}"
        while not order.exists():
            time.sleep(0.02)
        wanted = json.loads(order.read_text())
        self.steps, self.seconds, self.local = wanted["steps"], [], []
        dist.barrier()
        if wanted["profile"]:
            self._profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
            self._profiler.__enter__()
        self.before = self._counters()
        self.start = time.perf_counter()

    def gradients_ready(self) -> None:
        """Forward and backward have been done."""
        self.local.append(time.perf_counter() - self.start)

    def tick(self) -> None:
        """A step has been done; where it was the visit's last, answer and wait for the next order."""
        now = time.perf_counter()
        self.seconds.append(now - self.start)
        self.start = now
        if len(self.seconds) == self.steps:
            self._answer()
            self.begin()

    def _answer(self) -> None:
        profile = ""
        if self._profiler is not None:
            self._profiler.__exit__(None, None, None)
            profile = self._profiler.key_averages().table(
                sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40
            )
            self._profiler = None
        dist.barrier()  # what the others still send to this rank is counted too
        after = self._counters()
        per_step = {
            name: (value - self.before.get(name, 0)) / self.steps
            for name, value in after.items()  # a phase may be new
        }
        answer = {"seconds": self.seconds, "local": self.local, "per_step": per_step, "profile": profile}
        path = self.folder / f"answer-{self.visit}-{dist.get_rank()}"
        path.with_suffix(".part").write_text(json.dumps(answer))
        path.with_suffix(".part").rename(path)
        self.visit += 1

    def _counters(self) -> dict[str, float]:
        folder = Path(f"/sys/class/net/{os.environ['GLOO_SOCKET_IFNAME']}/statistics")
        counters: dict[str, float] = {
            "sent": int((folder / "tx_bytes").read_text()),
            "received": int((folder / "rx_bytes").read_text()),
        }
        if self.traffic is not None:
            traffic = self.traffic()
            counters["counted"] = traffic.bytes_sent
            counters.update({f"{name} s": value for name, value in traffic.seconds.items()})
        return counters


def batches(model: Model) -> Iterator[Batch]:
    """A few batches of this rank's own, over and over."""
    generator = torch.Generator().manual_seed(int(os.environ["RANK"]))
    few = [model.batch(generator) for _ in range(4)]
    while True:
        yield from few


def loop(
    pace: Pace,
    model: Model,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    two_gradients: bool = False,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> None:
    """Train for ever, by hand."""
    source = batches(model)
    pace.begin()
    while True:
        inputs, targets = next(source)

        def closure(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
            optimizer.zero_grad()
            with context():
                loss = nn.functional.cross_entropy(module(inputs), targets)
                loss.backward()
            return loss

        if two_gradients:
            optimizer.step(closure)  # type: ignore[arg-type]
        else:
            closure()
            pace.gradients_ready()
            optimizer.step()
        pace.tick()


def compute(pace: Pace, model: Model) -> None:
    """Forward, backward and SGD, without any exchange."""
    module = model.build()
    loop(pace, model, module, _sgd(module))


def compute_in_ddp(pace: Pace, model: Model) -> None:
    """The same inside DDP, whose exchange is off."""
    module = DistributedDataParallel(model.build())
    loop(pace, model, module, _sgd(module), context=module.no_sync)


def ddp(pace: Pace, model: Model, hook: Any = None, state: object = None) -> None:
    """DDP as torch has it, with or without a communication hook."""
    module = DistributedDataParallel(model.build())
    if hook is not None:
        module.register_comm_hook(state, hook)
    loop(pace, model, module, _sgd(module))


def _sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), LR, momentum=0.9)


def _bf16(state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """The bf16 hook by another name: by its own, DDP refuses it without NCCL, though gloo can carry it."""
    return default_hooks.bf16_compress_hook(state, bucket)  # type: ignore[arg-type]


def _power_sgd_in_turn(
    state: powerSGD_hook.PowerSGDState, bucket: dist.GradBucket
) -> torch.futures.Future[Tensor]:
    """PowerSGD, one bucket after the other, so that all ranks issue its collectives in the same order."""
    future = powerSGD_hook.powerSGD_hook(state, bucket)
    future.wait()
    return future


def _power_sgd() -> powerSGD_hook.PowerSGDState:
    return powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=4, start_powerSGD_iter=2)


def vote(pace: Pace, model: Model, name: str = "Signum", overlap: bool = False) -> None:
    """A method of this library in a loop by hand."""
    from lightning_signvr import optimizers

    module = model.build()
    optimizer = getattr(optimizers, name)(module.parameters(), lr=LR)
    if overlap:
        optimizer.overlap()
    pace.traffic = lambda: optimizer.vote.traffic
    loop(pace, model, module, optimizer, two_gradients=name == "SSVR")


def trainer(pace: Pace, model: Model, **strategy: Any) -> None:
    """Signum through Lightning's Trainer."""
    import lightning as L

    import lightning_signvr

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = model.build()

        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            inputs, targets = batch
            return nn.functional.cross_entropy(self.net(inputs), targets)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return lightning_signvr.Signum(self.parameters(), lr=LR)

    class Steps(L.Callback):
        def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            votes: Any = trainer.strategy.votes  # type: ignore[attr-defined]
            pace.traffic = lambda: votes[0].traffic
            pace.begin()

        def on_after_backward(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            pace.gradients_ready()

        def on_train_batch_end(self, *_: Any) -> None:
            pace.tick()

    class Source:
        def __iter__(self) -> Iterator[Batch]:
            return batches(model)

    chosen = lightning_signvr.SignVoteStrategy(**strategy)
    L.Trainer(
        strategy=chosen,
        accelerator="cpu",
        devices=1,
        num_nodes=int(os.environ["WORLD_SIZE"]),
        max_steps=-1,
        logger=False,
        callbacks=[Steps()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    ).fit(Module(), Source())


METHODS: dict[str, Callable[[Pace, Model], None]] = {
    "compute": compute,
    "compute in DDP": compute_in_ddp,
    "DDP fp32": ddp,
    "DDP fp16 hook": lambda pace, model: ddp(pace, model, default_hooks.fp16_compress_hook),
    "DDP bf16 hook": lambda pace, model: ddp(pace, model, default_hooks.bf16_compress_hook),
    "DDP bf16 hook, renamed": lambda pace, model: ddp(pace, model, _bf16),
    "PowerSGD hook": lambda pace, model: ddp(pace, model, powerSGD_hook.powerSGD_hook, _power_sgd()),
    "PowerSGD hook, in turn": lambda pace, model: ddp(pace, model, _power_sgd_in_turn, _power_sgd()),
    "vote, Signum": vote,
    "vote, Signum, overlap": lambda pace, model: vote(pace, model, overlap=True),
    "vote, Signum, Trainer": trainer,
    "vote, Signum, Trainer, overlap": lambda pace, model: trainer(pace, model, overlap=True),
    "vote, SSVR": lambda pace, model: vote(pace, model, "SSVR"),
}


def main() -> None:
    """``link_worker.py METHOD MODEL FOLDER``."""
    method, model, folder = sys.argv[1], MODELS[sys.argv[2]], Path(sys.argv[3])
    errors = open(folder / f"stderr-{os.environ['RANK']}", "w")  # noqa: SIM115 - it lives as long as we do
    os.dup2(errors.fileno(), 2)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if "Trainer" not in method:  # which makes the process group itself
        dist.init_process_group("gloo")
    METHODS[method](Pace(folder), model)


if __name__ == "__main__":
    main()
