"""What watching costs: training with all monitors beside training with none. And: are bytes counted right?

``python benchmarks/monitoring.py --output benchmarks/results/monitoring.md``

Two workers train an MLP with Lightning and Signum, with and without the monitors in turns, at Lightning's
default ``log_every_n_steps=50``. As root on Linux each worker is a host of its own, so that the bytes that
the monitor logs can be compared with those that the network interface has sent; elsewhere that part is left
out, with a message.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from network import Network, NetworkUnavailableError, torchrun_variables, wait_for
from timing import heading
from torch import Tensor, nn

import lightning_signvr
from lightning_signvr.callbacks import ReplicaCheck, SignVoteMonitor, VoteAutopsy

WARM_UP, STEPS, LIMIT = 20, 200, 1.02


class Perceptron(L.LightningModule):
    """10.5 M parameters in 8 layers of weights and biases."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = [1024, *[1228] * 6, 1024]
        layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(sizes)]
        self.net = nn.Sequential(*layers)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = (self.net(batch) - batch).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return lightning_signvr.Signum(self.parameters(), lr=1e-4)


class Stopwatch(L.Callback):
    """Seconds per step after the warm-up, and bytes counted and seen at the interface."""

    def __init__(self) -> None:
        self.start: tuple[float, float, int, int] = (0.0, 0.0, 0, 0)
        self.seconds = self.cpu = 0.0
        self.counted = self.seen = 0

    @staticmethod
    def _read(trainer: L.Trainer) -> tuple[float, float, int, int]:
        interface = Path("/sys/class/net/eth0/statistics/tx_bytes")
        seen = int(interface.read_text()) if "GLOO_SOCKET_IFNAME" in os.environ else 0
        votes: Any = trainer.strategy.votes  # type: ignore[attr-defined]
        return time.perf_counter(), time.process_time(), votes[0].traffic.bytes_sent, seen

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == WARM_UP:
            self.start = self._read(trainer)
        elif trainer.global_step == WARM_UP + STEPS:
            now = self._read(trainer)
            difference = [after - before for before, after in zip(self.start, now, strict=True)]
            self.seconds, self.cpu = difference[0] / STEPS, difference[1] / STEPS
            self.counted, self.seen = int(difference[2]), int(difference[3])


def train(watched: bool, folder: str) -> Stopwatch:
    stopwatch = Stopwatch()
    monitors = [SignVoteMonitor(), VoteAutopsy(), ReplicaCheck()] if watched else []
    trainer = L.Trainer(
        strategy="sign_vote",
        accelerator="cpu",
        devices=1,
        num_nodes=int(os.environ["WORLD_SIZE"]),
        max_steps=WARM_UP + STEPS,
        logger=TensorBoardLogger(folder, name="watched" if watched else "plain"),
        callbacks=[*monitors, stopwatch],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    rank = int(os.environ["RANK"])
    data = torch.randn(64, 1024, generator=torch.Generator().manual_seed(rank))
    trainer.fit(Perceptron(), torch.utils.data.DataLoader(data, batch_size=16))
    return stopwatch


def work(rounds: int) -> None:
    """One worker: train in turns, print what was measured."""
    torch.set_num_threads(1)
    results: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            # the order changes from round to round
            for watched in (False, True) if number % 2 == 0 else (True, False):
                run = train(watched, folder)
                keys = ("seconds", "cpu", "counted", "seen")
                results.append({"watched": watched, **{key: getattr(run, key) for key in keys}})
    print(json.dumps(results), flush=True)


def measure(rounds: int) -> tuple[list[dict[str, float]], str]:
    """Results of rank 0, and where they come from."""
    script = [__file__, "--rounds", str(rounds)]
    variables = {"SIGNVR_BENCHMARK_WORKER": "1"}
    try:
        with Network(2) as network:
            outputs = wait_for(network.start(script, **variables), timeout=1800)
            where = "two hosts (network namespaces) on an unshaped link"
    except NetworkUnavailableError as error:
        print(f"skipped: bytes at the network interface: {error}", file=sys.stderr)
        processes = [
            subprocess.Popen(
                [sys.executable, *script],
                env={**os.environ, **variables, **torchrun_variables(rank, 2, "127.0.0.1")},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        outputs, where = wait_for(processes, timeout=1800), "one machine's loopback"
    return json.loads(outputs[0].strip().splitlines()[-1]), where


def row(name: str, key: str, results: list[dict[str, float]]) -> str:
    """One line of the table."""
    plain, watched = (
        [1000 * result[key] for result in results if result["watched"] == chosen] for chosen in (False, True)
    )
    pairs = [b / a for a, b in zip(plain, watched, strict=True)]
    cells = [f"{statistics.median(own):.2f} | {min(own):.2f} to {max(own):.2f}" for own in (plain, watched)]
    met = "yes" if statistics.median(pairs) <= LIMIT else "no"
    ratio = f"{statistics.median(pairs):.3f} | {min(pairs):.3f} to {max(pairs):.3f}"
    return f"| {name} | {cells[0]} | {cells[1]} | {ratio} | {LIMIT} | {met} |"


def report(results: list[dict[str, float]], where: str, rounds: int) -> str:
    lines = [
        *heading("Monitoring", rounds),
        f"Two workers with one thread each, {where}; MLP of 10.5 M parameters, batch 16 per worker, Signum, "
        f"`log_every_n_steps=50`, {STEPS} steps per round after {WARM_UP} of warm-up, TensorBoard logger in "
        "both. Monitors: SignVoteMonitor (all parts, per layer), VoteAutopsy, ReplicaCheck.",
        "",
        "| per step | no monitors: median ms | min to max | all monitors: median ms | min to max "
        "| median ratio of the rounds | min to max | aim | met |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
        row("wall time", "seconds", results),
        row("CPU time of rank 0", "cpu", results),
        "",
    ]
    if any(result["seen"] for result in results):
        shares = [result["seen"] / result["counted"] for result in results]
        met = "yes" if max(shares) <= 1.05 else "no"
        lines += [
            "Bytes that rank 0's interface sent (TCP and IP headers, acknowledgements and the monitors' own "
            "small all-reduces included), divided by those that the vote counted, which the monitor logs:",
            "",
            "| min to max | aim | met |",
            "|---:|---:|---|",
            f"| {min(shares):.4f} to {max(shares):.4f} | 1.05 | {met} |",
            "",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="markdown file to write, beside printing it")
    arguments = parser.parse_args()
    if "SIGNVR_BENCHMARK_WORKER" in os.environ:
        work(arguments.rounds)
        return
    text = report(*measure(arguments.rounds), arguments.rounds)
    print(text)
    if arguments.output is not None:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
