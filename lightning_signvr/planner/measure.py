"""Measure the real link and codec, for ``lightning-signvr plan --measured``.

Start it as the training would be started, one process per worker, on all nodes:
``torchrun --nproc_per_node 2 -m lightning_signvr.planner.measure --out measured.json``
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from lightning_signvr.optimizers import SignSGD
from lightning_signvr.planner.figures import Costs, Link
from lightning_signvr.planner.measured import Measured
from lightning_signvr.planner.units import format_rate, format_seconds, parse_duration
from lightning_signvr.signs import add_signs_, majority, pack_signs_and_abstentions
from lightning_signvr.voting import LocalVote
from lightning_signvr.voting.traffic import Traffic

ELEMENTS = 16 * 2**20
"""Parameters that the codec is timed on: more than a cache holds."""

MESSAGE_SECONDS = 0.2
"""About what an exchange should take for its speed to be known well."""

LARGEST_VOTE, LARGEST_REDUCE = 8 * 2**20, 64 * 2**20
"""Bytes of the exchanges that are timed, at most: as votes are, an eighth of gradients or less."""

REPEATS = 5


class Stopwatch:
    """Times operations that all workers run at once; the slowest worker counts.

    Args:
        device: of the operations.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def slowest(self, values: Sequence[float]) -> list[float]:
        """The largest of each of the workers' values."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        largest: list[float] = tensor.tolist()
        return largest

    def seconds(self, run: Callable[[], object], repeats: int = REPEATS) -> float:
        """Median seconds of ``run``, after one run that does not count."""
        times = []
        for _ in range(repeats + 1):
            dist.barrier()
            self._synchronize()
            start = time.perf_counter()
            run()
            self._synchronize()
            times.append(time.perf_counter() - start)
        return statistics.median(self.slowest(times[1:]))

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def measure(device: torch.device) -> Measured:
    """Measure within the default process group; a collective. The same result on all workers.

    It takes some seconds on a fast link and about a minute at 100 Mbit/s.

    Args:
        device: of the model, which the process group's backend must serve.
    """
    watch = Stopwatch(device)
    link, size, reduce_seconds = _measure_link(watch)
    return Measured(
        link=link,
        costs=_measure_costs(watch),
        overlap=_measure_overlap(watch, size, reduce_seconds),
        workers=dist.get_world_size(),
        device=device.type,
    )


def _measure_link(watch: Stopwatch) -> tuple[Link, int, float]:
    """The link; bytes and seconds of the all-reduce that was timed."""
    workers = dist.get_world_size()
    others = workers - 1
    latency = watch.seconds(_vote_exchange(workers, workers, watch.device), 30) / (1 + others)

    def fitting(run: Callable[[int], Callable[[], object]], largest: int) -> tuple[int, float]:
        """Grow the message until it takes long enough; its size and seconds."""
        unit = 4 * workers
        size = 2**20 // unit * unit
        while True:
            seconds = watch.seconds(run(size))
            larger = min(largest, int(size * max(2.0, MESSAGE_SECONDS / seconds))) // unit * unit
            if seconds >= MESSAGE_SECONDS / 2 or larger <= size:
                return size, seconds
            size = larger

    size, seconds = fitting(lambda size: _vote_exchange(size, workers, watch.device), LARGEST_VOTE)
    rate = 2 * others / workers * size / max(seconds - (1 + others) * latency, seconds / 2)
    size, seconds = fitting(lambda size: _all_reduce(size, watch.device), LARGEST_REDUCE)
    reduce_rate = 2 * others / workers * size / max(seconds - 2 * others * latency, seconds / 2)
    return Link(rate, latency, reduce_rate), size, seconds


def _vote_exchange(size: int, workers: int, device: torch.device) -> Callable[[], object]:
    """The exchange of a vote whose plane has ``size`` bytes."""
    sent = torch.zeros(workers, size // workers, dtype=torch.uint8, device=device)
    received, traffic = torch.empty_like(sent), Traffic()

    def run() -> None:
        traffic.all_to_all(received, sent, None).wait()
        traffic.all_gather(received, sent[0], None).wait()

    return run


def _all_reduce(size: int, device: torch.device) -> Callable[[], object]:
    numbers = torch.zeros(size // 4, device=device)
    return lambda: dist.all_reduce(numbers)


def _measure_overlap(watch: Stopwatch, size: int, seconds: float) -> float:
    """The share that is hidden of the shorter of an all-reduce and a computation that takes as long."""
    numbers = torch.zeros(size // 4, device=watch.device)
    matrix = torch.rand(512, 512, device=watch.device)
    count = max(1, round(seconds / watch.seconds(lambda: matrix @ matrix)))

    def exchange() -> None:
        dist.all_reduce(numbers)

    def compute() -> None:
        for _ in range(count):
            matrix @ matrix

    def both() -> None:
        work = dist.all_reduce(numbers, async_op=True)
        compute()
        assert work is not None
        work.wait()

    hidden = []
    for _ in range(REPEATS):  # in turns: what else runs on the machine slows all three
        first, second, together = (watch.seconds(run, repeats=1) for run in (exchange, compute, both))
        hidden.append((first + second - together) / min(first, second))
    return min(1.0, max(0.0, statistics.median(hidden)))


def _measure_costs(watch: Stopwatch) -> Costs:
    workers, device = dist.get_world_size(), watch.device
    values, update = torch.randn(ELEMENTS, device=device), torch.full((ELEMENTS,), 1e-3, device=device)
    signs, abstentions, _ = pack_signs_and_abstentions(values)
    shard = ELEMENTS // 8 // workers
    rows = torch.randint(0, 256, (workers, shard), dtype=torch.uint8, device=device)
    errors, matrices = torch.zeros(ELEMENTS, device=device).view(-1, 1024, 1024), values.view(-1, 1024, 1024)
    factor = torch.randn(1024, 4, device=device)

    def per_parameter(run: Callable[[], object]) -> float:
        return watch.seconds(run) / ELEMENTS

    def low_rank() -> None:
        errors.add_(matrices)
        left = torch.nn.functional.normalize(errors @ factor, dim=1)
        errors.baddbmm_(left, (errors.mT @ left).mT, alpha=-1)

    return Costs(
        pack=per_parameter(lambda: pack_signs_and_abstentions(values, signs, abstentions)),
        tally=per_parameter(lambda: majority(rows)),
        apply=per_parameter(lambda: add_signs_(update, signs, 1e-9)),
        elementwise=per_parameter(lambda: update.add_(values, alpha=1e-9)),
        low_rank=per_parameter(low_rank),
        per_tensor=_per_tensor(watch),
    )


def _per_tensor(watch: Stopwatch, tensors: int = 200) -> float:
    parameters = [torch.nn.Parameter(torch.zeros(8, device=watch.device)) for _ in range(tensors)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = SignSGD(parameters, 1e-3, vote=LocalVote())
    return watch.seconds(optimizer.step) / tensors


def describe(measured: Measured) -> str:
    """The figures as text."""
    costs, link = measured.costs, measured.link
    picoseconds = {
        "pack": costs.pack,
        "tally": costs.tally,
        "apply": costs.apply,
        "one elementwise operation": costs.elementwise,
        "PowerSGD's products": costs.low_rank,
    }
    lines = [
        f"{measured.workers} workers on {measured.device}, the slowest of them at each figure",
        f"link, votes (all_to_all and all_gather):  {format_rate(link.bytes_per_second)}",
        f"link, numbers (all-reduce):               {format_rate(link.reduce_rate)}",
        f"latency of a hop:                         {format_seconds(link.latency)}",
        f"hidden where both compute and exchange:   {measured.overlap:.0%}",
        *(f"{name + ', per parameter:':<41} {1e12 * cost:.0f} ps" for name, cost in picoseconds.items()),
        f"each tensor, beside that:                 {format_seconds(costs.per_tensor)}",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a program under torchrun; 2 where it was not started by that, or alone."""
    parser = argparse.ArgumentParser(prog="lightning_signvr.planner.measure", description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file to write, by rank 0")
    parser.add_argument(
        "--timeout", default="120s", help="of a collective, after which it gives up (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    try:
        timeout = timedelta(seconds=parse_duration(options.timeout))
    except ValueError as error:
        parser.error(f"argument --timeout: {error}")
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if name not in os.environ]
    if missing:
        parser.error(
            f"{', '.join(missing)} not set: start it with torchrun, as in "
            "`torchrun --nproc_per_node 2 -m lightning_signvr.planner.measure --out measured.json`"
        )
    if int(os.environ["WORLD_SIZE"]) < 2:
        parser.error("one worker has no link to measure: start at least 2, best one on each of 2 nodes")
    if options.out is not None and not options.out.absolute().parent.is_dir():
        parser.error(f"argument --out: the folder of {options.out} does not exist")

    device, backend = torch.device("cpu"), "gloo"
    if torch.cuda.is_available():
        device, backend = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))), "nccl"
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=timeout)
    try:
        measured = measure(device)
        if dist.get_rank() == 0:
            print(describe(measured))
            if options.out is not None:
                options.out.write_text(measured.to_json())
                print(f"Wrote {options.out}.")
        dist.barrier()
    finally:
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
