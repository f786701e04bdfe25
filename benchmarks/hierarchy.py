"""Several workers on each node: what crosses the slow link with workers as voters, nodes as voters, and DDP.

``python benchmarks/hierarchy.py --output benchmarks/results/hierarchy.md`` (root, Linux)

Each node is a network namespace: its workers reach each other over its loopback device, and the other nodes
over one shaped interface, whose counter says what crossed. An MLP of 10.5 M parameters trains a few steps.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from models import MODELS
from network import Network, NetworkUnavailableError, torchrun_variables, wait_for
from timing import cpu_model, publish
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import lightning_signvr
from lightning_signvr import MajorityVote, Signum

WARM_UP, TIMEOUT = 2, 900
METHODS = {
    "ddp": "DDP fp32",
    "worker": 'sign vote, `voters="worker"`',
    "node": 'sign vote, `voters="node"`',
    "node_overlap": 'sign vote, `voters="node"`, begun in backward',
}


def work(method: str, steps: int) -> None:
    """One worker: train; the first of each node prints what it cost."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model, rank = MODELS["mlp"], dist.get_rank()
    module: nn.Module = model.build()
    optimizer: torch.optim.Optimizer
    traffic = None
    if method == "ddp":
        module = DistributedDataParallel(module)
        optimizer = torch.optim.SGD(module.parameters(), lr=1e-4, momentum=0.9)
    else:
        vote = MajorityVote(voters="worker" if method == "worker" else "node")
        optimizer, traffic = Signum(module.parameters(), lr=1e-4, vote=vote), vote.traffic
        if method == "node_overlap":
            optimizer.overlap()
    generator = torch.Generator().manual_seed(rank)
    seconds: list[float] = []
    before = (0, 0, 0)
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            dist.barrier()
            before = _counters(traffic)
        started = time.perf_counter()
        inputs, targets = model.batch(generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(inputs), targets).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    dist.barrier()  # what the others still send is counted too
    crossed, sent, inside = (new - old for new, old in zip(_counters(traffic), before, strict=True))
    if os.environ["LOCAL_RANK"] == "0":
        answer = {"crossed": crossed, "sent": sent, "inside": inside, "seconds": seconds[WARM_UP:]}
        print(json.dumps({**answer, "parameters": sum(p.numel() for p in module.parameters())}))
    dist.destroy_process_group()


def _counters(traffic: Any) -> tuple[int, int, int]:
    crossed = int(Path("/sys/class/net/eth0/statistics/tx_bytes").read_text())
    return (crossed, 0, 0) if traffic is None else (crossed, traffic.bytes_sent, traffic.bytes_inside)


def start(network: Network, per_node: int, method: str, steps: int) -> list[subprocess.Popen[str]]:
    """Start all workers of all nodes."""
    nodes, processes = len(network.names), []
    for node, name in enumerate(network.names):
        for place in range(per_node):
            variables = {
                **os.environ,
                **torchrun_variables(node * per_node + place, nodes * per_node, network.addresses[0]),
                "GROUP_RANK": str(node),
                "LOCAL_RANK": str(place),
                "LOCAL_WORLD_SIZE": str(per_node),
                "GLOO_SOCKET_IFNAME": "eth0",
            }
            command = ["ip", "netns", "exec", name, sys.executable, __file__]
            command += ["--worker", method, "--steps", str(steps)]
            processes.append(subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True))
    return processes


def measure(nodes: int, per_node: int, rate: str, method: str, steps: int) -> dict[str, float]:
    """What a step costs, of the node that sends most and of the median step."""
    with Network(nodes, rate) as network:
        outputs = wait_for(start(network, per_node, method, steps), TIMEOUT)
    found = [json.loads(output.splitlines()[-1]) for output in outputs if output.strip()]
    seconds = [max(times) for times in zip(*(each["seconds"] for each in found), strict=True)]
    return {
        "parameters": found[0]["parameters"],
        "crossed": max(each["crossed"] for each in found) / steps,
        "inside": max(each["inside"] for each in found) / steps,
        "seconds": statistics.median(seconds),
    }


def report(nodes: int, per_node: int, rate: str, steps: int) -> str:
    """Markdown, from measurements of each method."""
    found = {method: measure(nodes, per_node, rate, method, steps) for method in METHODS}
    rows = [
        f"| {METHODS[method]} | {each['crossed'] / 1e6:.2f} | {8 * each['crossed'] / each['parameters']:.2f} "
        f"| {each['inside'] / 1e6:.2f} | {1000 * each['seconds']:.0f} |"
        for method, each in found.items()
    ]
    parameters, promised = found["node"]["parameters"], 2 * (nodes - 1) / nodes
    return "\n".join(
        [
            f"# Nodes as voters: {nodes} nodes of {per_node} workers",
            "",
            f"{date.today()}, {cpu_model()}, Python {platform.python_version()}, torch {torch.__version__}, "
            f"lightning-signvr {lightning_signvr.__version__}; {steps} steps of each method.",
            "",
            f"An MLP of {parameters:,.0f} parameters, {rate} between the nodes, loopback inside them; all "
            f"{nodes * per_node} processes share {os.cpu_count()} cores, one thread each. What crossed is "
            "what the interface of a node has sent in a step, headers of all layers included; what stayed "
            "inside is what one worker has handed to collectives of its node.",
            "",
            "| method | crossed per node, MB | bits per parameter | inside per worker, MB | step, ms |",
            "|---|---:|---:|---:|---:|",
            *rows,
            "",
            f"`voters=\"node\"` promises 2 (m - 1) / m = {promised:.2f} bits per parameter and node without "
            f"headers; measured {8 * found['node']['crossed'] / parameters / promised:.3f} times that.",
            "",
        ]
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--nodes", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--per-node", type=int, default=2, help="workers of each; default: %(default)s")
    parser.add_argument("--rate", default="100mbit", help="of a node's link, as for tc; default: %(default)s")
    parser.add_argument("--steps", type=int, default=5, help="that are timed; default: %(default)s")
    parser.add_argument("--output", type=Path, help="markdown file to write, beside printing it")
    parser.add_argument("--worker", choices=METHODS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if min(arguments.nodes, arguments.per_node) < 2 or arguments.steps < 1:
        parser.error("--nodes and --per-node must be at least 2, --steps at least 1")
    if arguments.worker is not None:
        work(arguments.worker, arguments.steps)
        return
    try:
        text = report(arguments.nodes, arguments.per_node, arguments.rate, arguments.steps)
    except NetworkUnavailableError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    publish(text, arguments.output)


if __name__ == "__main__":
    main()
