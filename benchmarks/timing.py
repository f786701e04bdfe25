"""What the benchmarks share: operations that take turns, and markdown."""

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


@dataclass
class Operation:
    """Something to time.

    Attributes:
        name: in the tables.
        run: what is timed.
        prepare: called before each run, not timed.
        milliseconds: of the runs so far.
    """

    name: str
    run: Callable[[], object]
    prepare: Callable[[], object] = lambda: None
    milliseconds: list[float] = field(default_factory=list)

    def time_once(self) -> None:
        self.prepare()
        start = time.perf_counter()
        self.run()
        self.milliseconds.append(1000 * (time.perf_counter() - start))

    @property
    def median(self) -> float:
        return statistics.median(self.milliseconds)


def take_turns(operations: Sequence[Operation], repeats: int) -> None:
    """Warm up, then time the operations round-robin: a busy machine slows all of them alike."""
    for operation in operations:
        operation.prepare()
        operation.run()
    for _ in range(repeats):
        for operation in operations:
            operation.time_once()


def publish(text: str, output: Path | None) -> None:
    """Print it, and write it to a file where one is named."""
    print(text, end="")
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text)


def heading(title: str, repeats: int) -> list[str]:
    """Title and circumstances."""
    return [
        f"# {title}",
        "",
        f"{date.today()}, {cpu_model()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"NumPy {np.__version__}, lightning-signvr {lightning_signvr.__version__}; "
        f"{repeats} repeats, taking turns.",
        "",
    ]


def times(timed: Sequence[Operation]) -> list[str]:
    """Table of medians and ranges."""
    rows = [
        f"| {operation.name} | {operation.median:.2f} "
        f"| {min(operation.milliseconds):.2f} to {max(operation.milliseconds):.2f} |"
        for operation in timed
    ]
    return ["| operation | median ms | min to max ms |", "|---|---:|---:|", *rows]


def ratios(timed: Sequence[Operation], aims: Sequence[tuple[str, str, float]]) -> list[str]:
    """Table of (operation, what it is compared with, largest ratio aimed at)."""
    by_name = {operation.name: operation for operation in timed}
    lines = ["| ratio of medians | measured | aim | met |", "|---|---:|---:|---|"]
    for name, base, aim in aims:
        ratio = by_name[name].median / by_name[base].median
        lines.append(f"| {name} : {base} | {ratio:.2f} | {aim:.2f} | {'yes' if ratio <= aim else 'no'} |")
    return lines


def cpu_model() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def run_cli(
    description: str,
    size: tuple[str, int],
    operations: Callable[[int], Sequence[Operation]],
    report: Callable[[int, int, Sequence[Operation]], str],
) -> None:
    """Command line of a benchmark: ``--repeats``, ``--output`` and one option for the size.

    Args:
        description: of the program.
        size: name of the option for the problem's size and its default.
        operations: makes the operations from the size.
        report: makes markdown from the size, the repeats and the timed operations.
    """
    parser = argparse.ArgumentParser(description=description)
    name, default = size
    parser.add_argument(
        f"--{name}", type=int, default=default, dest="size", metavar=name.upper(), help="default: %(default)s"
    )
    parser.add_argument("--repeats", type=int, default=15, help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="markdown file to write, beside printing it")
    arguments = parser.parse_args()
    if arguments.size < 1 or arguments.repeats < 1:
        parser.error(f"--{name} and --repeats must be at least 1")

    torch.set_num_threads(1)
    timed = operations(arguments.size)
    take_turns(timed, arguments.repeats)
    text = report(arguments.size, arguments.repeats, timed)
    publish(text, arguments.output)
