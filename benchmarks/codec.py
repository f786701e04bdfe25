"""Time the sign codec on one CPU thread, beside the plain torch operations that bound it.

``python benchmarks/codec.py --output benchmarks/results/codec.md``

The operations take turns (round-robin), so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import torch

import lightning_signvr
from lightning_signvr.signs import add_signs_, majority, pack_signs, pack_signs_and_abstentions

VOTERS = (2, 4, 8, 16)
# operation, what it is compared with, largest ratio aimed at
AIMS = (
    ("pack", "read", 1.8),
    ("pack, looking for zeros", "read", 2.6),
    ("apply", "plain add", 1.3),
    ("tally, own shard, 8 voters", "pack", 1 / 3),
    ("tally, own shard, 16 voters", "pack", 1 / 3),
)


@dataclass
class Operation:
    """Something to time."""

    name: str
    run: Callable[[], object]
    milliseconds: list[float] = field(default_factory=list)

    def time_once(self) -> None:
        start = time.perf_counter()
        self.run()
        self.milliseconds.append(1000 * (time.perf_counter() - start))

    @property
    def median(self) -> float:
        return statistics.median(self.milliseconds)


def operations(elements: int) -> Sequence[Operation]:
    """All operations on ``elements`` float32, their results discarded."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(elements, generator=generator)
    with_zero = values.clone()
    values[values == 0] = 1.0  # no exact zero anywhere: the usual gradient
    with_zero[:: max(1, elements // 10)] = 0.0
    parameters, update = torch.zeros(elements), torch.full((elements,), 1e-3)
    packed = pack_signs(values)
    signs, abstentions = torch.empty_like(packed), torch.empty_like(packed)
    zeros = pack_signs_and_abstentions(with_zero)[1]
    rows = torch.randint(0, 256, (max(VOTERS), len(packed)), dtype=torch.uint8, generator=generator)
    shards = {voters: rows[:voters, : -(-len(packed) // voters)].contiguous() for voters in VOTERS}

    def tally(votes: torch.Tensor) -> Callable[[], object]:
        return lambda: majority(votes)

    return [
        Operation("read", lambda: values.sum()),
        Operation("pack", lambda: pack_signs(values, signs)),
        Operation("pack, looking for zeros", lambda: pack_signs_and_abstentions(values, signs, abstentions)),
        *(Operation(f"tally, {n} voters", tally(rows[:n])) for n in VOTERS),
        *(Operation(f"tally, own shard, {n} voters", tally(shards[n])) for n in VOTERS),
        Operation("plain add", lambda: parameters.add_(update)),
        Operation("apply", lambda: add_signs_(parameters, packed, -1e-3)),
        Operation("apply, weight decay", lambda: add_signs_(parameters, packed, -1e-3, decay=0.9999)),
        Operation("apply, some zeros", lambda: add_signs_(parameters, packed, -1e-3, zeros=zeros)),
    ]


def report(elements: int, repeats: int, timed: Sequence[Operation]) -> str:
    """The measurements as markdown."""
    by_name = {operation.name: operation for operation in timed}
    lines = [
        f"# Sign codec, {elements / 1e6:g} M float32, one thread",
        "",
        f"{date.today()}, {cpu_model()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"NumPy {np.__version__}, lightning-signvr {lightning_signvr.__version__}; "
        f"{repeats} repeats, taking turns.",
        "",
        "| operation | median ms | min to max ms |",
        "|---|---:|---:|",
    ]
    lines += [
        f"| {operation.name} | {operation.median:.2f} "
        f"| {min(operation.milliseconds):.2f} to {max(operation.milliseconds):.2f} |"
        for operation in timed
    ]
    lines += ["", "| ratio of medians | measured | aim | met |", "|---|---:|---:|---|"]
    for name, base, aim in AIMS:
        ratio = by_name[name].median / by_name[base].median
        lines.append(f"| {name} : {base} | {ratio:.2f} | {aim:.2f} | {'yes' if ratio <= aim else 'no'} |")
    return "\n".join(lines) + "\n"


def cpu_model() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=25_600_000, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=15, help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="markdown file to write, beside printing it")
    arguments = parser.parse_args()
    if arguments.elements < 1 or arguments.repeats < 1:
        parser.error("--elements and --repeats must be at least 1")

    torch.set_num_threads(1)
    timed = operations(arguments.elements)
    for operation in timed:
        operation.run()  # warm up
    for _ in range(arguments.repeats):
        for operation in timed:
            operation.time_once()
    text = report(arguments.elements, arguments.repeats, timed)
    print(text, end="")
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
