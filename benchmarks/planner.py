"""Compare the planner's predictions with measured steps of two workers.

``python benchmarks/planner.py --output benchmarks/results/planner.md``

On the loopback interface and, for root where network namespaces are allowed, between two hosts made of
namespaces, with links that are unshaped and shaped by ``tc tbf``. In each network two processes first run
``lightning_signvr.planner.measure``, then train an MLP in several ways, which take turns. The prediction is
made from what was measured of the network, the codec and the forward and backward pass alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from network import Network, NetworkUnavailableError, torchrun_variables, wait_for
from timing import heading, publish
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from lightning_signvr import Signum
from lightning_signvr.planner import METHODS, Cluster, Problem, predict
from lightning_signvr.planner.measure import Stopwatch, measure
from lightning_signvr.planner.measured import Measured
from lightning_signvr.planner.units import format_rate

WORKERS, BATCH, INPUTS, WIDTH, OUTPUTS = 2, 16, 1024, 2048, 10
RATES = {"two hosts": None, "1 Gbit/s": "1gbit", "100 Mbit/s": "100mbit"}
# measured step: the prediction it is compared with, and what it is called
COMPARED = {
    "DDP fp32": ("fp32", "DDP fp32, SGD"),
    "DDP fp16": ("bf16", "DDP fp16 hook, SGD"),
    "vote": ("vote", "sign vote, Signum"),
}
TIMEOUT = 500
NOTE = """\
The model leaves out that gloo adds 16-bit numbers in software, which slows the fp16 hook down where the
link does not. Through the shaped links a vote gets less than an all-reduce: it is a short burst in both
directions at once, in which, presumably, TCP's acknowledgements wait behind the other side's data. At
100 Mbit/s a training step is faster than predicted: while it computes, tbf's bucket of 256 kB fills again,
which it does not between the back-to-back exchanges of the measurement."""


def network_of(width: int) -> nn.Module:
    """An MLP of 10.5 M parameters for a width of 2048."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(INPUTS, width), nn.Tanh()]
    for _ in range(2):
        layers += [nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(width, OUTPUTS))


def work(width: int, repeats: int) -> None:
    """One worker: measure, then train; rank 0 prints what it found."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    device = torch.device("cpu")
    measured, watch = measure(device), Stopwatch(device)
    generator = torch.Generator().manual_seed(dist.get_rank())

    def step_of(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> Callable[[], None]:
        def step() -> None:
            inputs = torch.randn(BATCH, INPUTS, generator=generator)
            targets = torch.randint(OUTPUTS, (BATCH,), generator=generator)
            model.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            if optimizer is not None:
                optimizer.step()

        return step

    def ddp(hook: Any = None) -> Callable[[], None]:
        model = DistributedDataParallel(network_of(width))
        if hook is not None:
            model.register_comm_hook(None, hook)
        return step_of(model, torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9))

    voting = network_of(width)
    signum = Signum(voting.parameters(), 1e-4)
    steps = {
        "compute": step_of(network_of(width), None),
        "DDP fp32": ddp(),
        "DDP fp16": ddp(fp16_compress_hook),
        "vote": step_of(voting, signum),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()  # the votes of a first step check more, and DDP orders its buckets after one
    sent = signum.vote.traffic.bytes_sent
    for _ in range(repeats):
        for name, step in steps.items():
            times[name].append(watch.seconds(step, repeats=1))
    sent = (signum.vote.traffic.bytes_sent - sent) // (2 * repeats)  # Stopwatch warms up
    if dist.get_rank() == 0:
        seconds = {name: statistics.median(values) for name, values in times.items()}
        print(json.dumps({"measured": measured.to_json(), "seconds": seconds, "bytes": sent}))
    dist.barrier()
    dist.destroy_process_group()


def on_loopback(script: list[str]) -> list[subprocess.Popen[str]]:
    """Start both workers on this host; stdout is a pipe."""
    processes = []
    for rank in range(WORKERS):
        environment = {**os.environ, **torchrun_variables(rank, WORKERS, "127.0.0.1")}
        environment["GLOO_SOCKET_IFNAME"] = "lo"
        command = [sys.executable, *script]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    return processes


def all_networks(script: list[str]) -> tuple[dict[str, Any], list[str]]:
    """What rank 0 printed in each network; what was left out and why."""
    found = {"loopback": json.loads(wait_for(on_loopback(script), TIMEOUT)[0])}
    for name, rate in RATES.items():
        try:
            with Network(WORKERS, rate) as network:
                found[name] = json.loads(wait_for(network.start(script), TIMEOUT)[0])
        except NetworkUnavailableError as error:
            return found, [f"No shaped links here: {error}."]
    return found, []


def report(width: int, repeats: int, found: dict[str, Any], remarks: list[str]) -> str:
    """The comparison as markdown."""
    shapes = [tuple(parameter.shape) for parameter in network_of(width).parameters()]
    links = ["| network | votes | all-reduce | latency, us | overlap |", "|---|---:|---:|---:|---:|"]
    costs = ["| network | pack | tally | apply | elementwise | low rank | per tensor, us |"]
    costs += ["|---|---:|---:|---:|---:|---:|---:|"]
    steps = [
        "| network | step | predicted ms | measured ms | predicted : measured |",
        "|---|---|---:|---:|---:|",
    ]
    for network, data in found.items():
        measured = Measured.from_json(data["measured"])
        link, cost = measured.link, measured.costs
        links.append(
            f"| {network} | {format_rate(link.bytes_per_second)} | {format_rate(link.reduce_rate)} "
            f"| {1e6 * link.latency:.0f} | {measured.overlap:.0%} |"
        )
        picoseconds = (cost.pack, cost.tally, cost.apply, cost.elementwise, cost.low_rank)
        cells = " | ".join(f"{1e12 * value:.0f}" for value in picoseconds)
        costs.append(f"| {network} | {cells} | {1e6 * cost.per_tensor:.0f} |")
        seconds = data["seconds"]
        cluster = Cluster(WORKERS, link, overlap=measured.overlap)
        problem = Problem(shapes, cluster, seconds["compute"], METHODS["Signum"], cost)
        predictions = predict(problem)
        steps.append(f"| {network} | forward and backward | | {1e3 * seconds['compute']:.1f} | |")
        for name, (prediction, label) in COMPARED.items():
            expected = predictions[prediction].seconds
            steps.append(
                f"| {network} | {label} | {1e3 * expected:.1f} | {1e3 * seconds[name]:.1f} "
                f"| {expected / seconds[name]:.2f} |"
            )
        steps.append(
            f"| {network} | bytes of the vote | {predictions['vote'].bytes_sent:,} | {data['bytes']:,} "
            f"| {predictions['vote'].bytes_sent / data['bytes']:.3f} |"
        )
    title = f"Planner: predicted and measured steps, MLP of {problem.parameters / 1e6:.1f} M parameters"
    lines = heading(f"{title}, batch {BATCH}, {WORKERS} workers with one thread each, gloo", repeats)
    lines += [*steps, "", "What was measured of the link:", "", *links, ""]
    lines += ["What was measured of the worker, picoseconds per parameter:", "", *costs]
    return "\n".join([*lines, "", NOTE, "", *remarks]) + "\n"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=WIDTH, help="of the MLP (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="markdown file to write, beside printing it")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.width < 1 or arguments.repeats < 1:
        parser.error("--width and --repeats must be at least 1")
    if arguments.work:
        work(arguments.width, arguments.repeats)
        return
    options = ["--work", "--width", str(arguments.width), "--repeats", str(arguments.repeats)]
    load = f"Load average of the {os.cpu_count()} cores before it began: {os.getloadavg()[0]:.1f}."
    found, left_out = all_networks([__file__, *options])
    text = report(arguments.width, arguments.repeats, found, [load, *left_out])
    publish(text, arguments.output)


if __name__ == "__main__":
    main()
