"""What a vote costs with 2 to 16 workers: bytes per rank stay the same, the tally grows with log n.

``python benchmarks/scaling.py --output benchmarks/results/scaling.md``

First the tally alone, in this process, with the votes of n workers on the same words. Then real votes of n
processes on the loopback interface, which share this machine's cores: their wall time says nothing about n
machines, their bytes do.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from network import torchrun_variables, wait_for
from timing import Operation, heading, publish, take_turns

from lightning_signvr import MajorityVote
from lightning_signvr.signs.tally import majority

VOTERS = (2, 3, 4, 8, 12, 16)
VOTES, TIMEOUT = 5, 300


def tallies(size: int, repeats: int) -> list[Operation]:
    """Time the tally of each number of voters on ``size`` coordinates."""
    generator = torch.Generator().manual_seed(0)
    planes = torch.randint(0, 256, (max(VOTERS), size // 8), dtype=torch.uint8, generator=generator)
    operations = [Operation(str(n), lambda votes=planes[:n]: majority(votes)) for n in VOTERS]
    take_turns(operations, repeats)
    return operations


def work(size: int) -> None:
    """One worker: vote some times; rank 0 prints what it cost."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    generator = torch.Generator().manual_seed(dist.get_rank())
    direction = torch.randn(size, generator=generator)
    vote = MajorityVote(topology="two_phase")
    vote([direction])  # the first one compares the ranks' layouts
    sent, tally_seconds = vote.traffic.bytes_sent, vote.traffic.seconds["tally"]
    for _ in range(VOTES):
        vote([direction])
    found = torch.tensor(
        [vote.traffic.bytes_sent - sent, vote.traffic.seconds["tally"] - tally_seconds], dtype=torch.float64
    )
    everyones = [torch.empty_like(found) for _ in range(dist.get_world_size())]
    dist.all_gather(everyones, found)
    if dist.get_rank() == 0:
        print(json.dumps((torch.stack(everyones) / VOTES).tolist()))
    dist.barrier()
    dist.destroy_process_group()


def votes_of(workers: int, size: int) -> list[list[float]]:
    """Bytes sent and seconds of tally per vote, of each rank."""
    processes = []
    for rank in range(workers):
        environment = {**os.environ, **torchrun_variables(rank, workers, "127.0.0.1")}
        environment["GLOO_SOCKET_IFNAME"] = "lo"
        command = [sys.executable, __file__, "--work", "--size", str(size)]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    found: list[list[float]] = json.loads(wait_for(processes, TIMEOUT)[0])
    return found


def report(size: int, repeats: int, all_workers: Sequence[int]) -> str:
    """Everything as markdown."""
    load = os.getloadavg()[0]
    lines = heading(f"Votes of 2 to 16 workers on {size / 1e6:.1f} M parameters", repeats)
    lines += [
        f"{os.cpu_count()} cores; load average before it began: {load:.1f}.",
        "",
        "The tally alone, one process, all votes on all parameters. A voter-word is 64 votes of one voter.",
        "",
        "| voters | median ms | min to max ms | ps per voter-word | : that of 2 | log2 n | no faster |",
        "|---:|---:|---:|---:|---:|---:|---|",
    ]
    first = 0.0
    for operation in tallies(size, repeats):
        voters = int(operation.name)
        word = 1e9 * operation.median / (voters * size / 64)
        first = first or word
        met = "yes" if word / first <= math.log2(voters) else "no"
        lines.append(
            f"| {voters} | {operation.median:.2f} | {min(operation.milliseconds):.2f} to "
            f"{max(operation.milliseconds):.2f} | {word:.0f} | {word / first:.2f} | {math.log2(voters):.2f} "
            f"| {met} |"
        )
    lines += [
        "",
        f"Votes of n processes on loopback, two phases, mean of {VOTES} votes. Bits per parameter: the most "
        "of all ranks. Tally: the median of all ranks, each of which counts 1/n of the parameters.",
        "",
        "| workers | bits per parameter sent | 2(n-1)/n | : | tally ms per rank | ps per voter-word |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for workers in all_workers:
        print(f"{workers} workers ...", file=sys.stderr, flush=True)
        found = votes_of(workers, size)
        bits, ideal = 8 * max(sent for sent, _ in found) / size, 2 * (workers - 1) / workers
        seconds = statistics.median(seconds for _, seconds in found)
        lines.append(
            f"| {workers} | {bits:.4f} | {ideal:.4f} | {bits / ideal:.4f} | {1e3 * seconds:.2f} "
            f"| {1e12 * seconds / (size / 64):.0f} |"  # a rank's words: n voters on 1/n of the parameters
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=10_485_760, help="parameters (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=15, help="of the tally alone (default: %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=VOTERS, help="of the real votes (2 to 16)")
    parser.add_argument("--output", type=Path, help="markdown file to write, beside printing it")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.size < 64 or arguments.repeats < 1 or min(arguments.workers) < 2:
        parser.error("--size must be at least 64, --repeats at least 1 and --workers at least 2")
    torch.set_num_threads(1)
    if arguments.work:
        work(arguments.size)
        return
    text = report(arguments.size, arguments.repeats, arguments.workers)
    publish(text, arguments.output)


if __name__ == "__main__":
    main()
