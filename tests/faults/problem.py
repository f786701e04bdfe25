"""What the programs of this folder have in common: options, the net, the data, and what they leave behind."""

from __future__ import annotations

import argparse
import os
import time
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_signvr.checkpoint_files import save

WORKERS = 3
TIMEOUT = timedelta(seconds=60)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=5, help="steps between checkpoints")
    parser.add_argument("--fault", default="", help="see faults.py, also for the next two")
    parser.add_argument("--step", type=int)
    parser.add_argument("--victim", type=int)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds, in each step of two workers")
    options = parser.parse_args(arguments)
    (options.folder / f"pid.{os.getpid()}").touch()
    return options


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def loss_of(net: nn.Module, rank: int, step: int) -> Tensor:
    """On samples that are a function of step and worker, so that a resumed run sees what comes next."""
    inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(1_000_000 * rank + step))
    return (net(inputs) - inputs.sum(1, keepdim=True)).pow(2).mean()


def log_start(options: argparse.Namespace, workers: int, step: int) -> None:
    """Of the run, on one rank: how many workers begin, at which step, and when."""
    with (options.folder / "starts").open("a") as file:
        file.write(f"{workers} {step} {time.time()}\n")


def keep_end(options: argparse.Namespace, rank: int, net: nn.Module, optimizer: Optimizer) -> None:
    """What is compared with the end of another run."""
    save({"net": net.state_dict(), "state": optimizer.state_dict()["state"]}, options.folder / f"end.{rank}")
