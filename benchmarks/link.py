"""Steps over slow links: sign votes beside DDP and its compression hooks, and beside what physics allows.

``python benchmarks/link.py --output benchmarks/results/link.md --plot docs/images/link.png``

As root on Linux. Hosts are network namespaces; their links are unshaped or shaped by ``tc tbf``. Each
method on each network has processes of its own, one rank and one thread per host, and the methods take
turns: a round visits each once. A method that dies or hangs is reported, and the others go on. With large
models, which do not fit into memory side by side, use ``--rounds 1``.
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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from link_worker import METHODS
from models import MODELS
from network import Network, NetworkUnavailableError
from timing import heading, publish

RATES = {"100 Mbit/s": ("100mbit", 1e8), "1 Gbit/s": ("1gbit", 1e9), "unshaped": (None, float("inf"))}
WORKER = str(Path(__file__).with_name("link_worker.py"))
START_LIMIT, STEP_LIMIT = 90, 20  # seconds; of a step: times what the fp32 gradients need on the link
WARM_UP = 3  # DDP orders its buckets after the first step, PowerSGD begins with the third
FEWEST, MOST = 2, 15  # steps of a visit
VOTES = (
    "vote, Signum",
    "vote, Signum, overlap",
    "vote, Signum, Trainer",
    "vote, Signum, Trainer, overlap",
)
BURST = """\
`tbf` lets through 256 kB at once where a link has been idle: up to 20 ms of each step are a gift at
100 Mbit/s, 2 ms at 1 Gbit/s."""


@dataclass
class Cell:
    """One method on one network.

    Attributes:
        failure: why there are no more results, or "".
        answers: of each visit after the warm-up, those of all ranks.
    """

    method: str
    folder: Path
    failure: str = ""
    answers: list[list[dict[str, Any]]] = field(default_factory=list)
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    visits: int = 0

    def visit(self, steps: int, limit: float, profile: bool = False) -> list[dict[str, Any]] | None:
        """Let it train some steps; None where it fails or needs more than ``limit`` seconds."""
        order = self.folder / f"go-{self.visits}"
        order.with_suffix(".part").write_text(json.dumps({"steps": steps, "profile": profile}))
        order.with_suffix(".part").rename(order)
        files = [self.folder / f"answer-{self.visits}-{rank}" for rank in range(len(self.processes))]
        self.visits += 1
        deadline = time.monotonic() + limit
        while not all(file.exists() for file in files):
            dead = [rank for rank, process in enumerate(self.processes) if process.poll() is not None]
            if dead:
                self._fail(self._reason(dead[0]))
                return None
            if time.monotonic() > deadline:
                self._fail(f"hangs: no answer within {limit:.0f} s")
                return None
            time.sleep(0.01)
        return [json.loads(file.read_text()) for file in files]

    def _fail(self, reason: str) -> None:
        self.failure = reason
        self.end()

    def _reason(self, rank: int) -> str:
        stderr = self.folder / f"stderr-{rank}"
        lines = stderr.read_text().splitlines() if stderr.exists() else []
        errors = [line.split("]: ", 1)[-1].strip() for line in lines if "Error" in line or "what():" in line]
        said = errors[-1][:160] if errors else "said nothing"
        return f"rank {rank} ended with status {self.processes[rank].returncode}: {said}"

    def end(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()

    @property
    def steps(self) -> list[float]:
        """Milliseconds of rank 0's steps."""
        return [1000 * second for answer in self.answers for second in answer[0]["seconds"]]

    @property
    def median(self) -> float:
        return statistics.median(self.steps)

    @property
    def local(self) -> float | None:
        """Median milliseconds until the gradients were ready, where that can be told."""
        times = [1000 * second for answer in self.answers for second in answer[0]["local"]]
        return statistics.median(times) if times else None

    def per_step(self, name: str) -> float:
        """The largest of all ranks, averaged over the visits."""
        largest = [max(rank["per_step"].get(name, 0.0) for rank in answer) for answer in self.answers]
        return statistics.fmean(largest)


def measure(arguments: argparse.Namespace, hosts: int, link: str, profiles: list[str]) -> list[Cell]:
    """All methods on one network."""
    rate, speed = RATES[link]
    exchange = 32 * arguments.parameters / min(speed, 1e9)  # seconds of DDP fp32, roughly
    limit = STEP_LIMIT * max(exchange, 0.5)
    cells: list[Cell] = []
    with tempfile.TemporaryDirectory() as scratch, Network(hosts, rate) as network:
        try:
            for number, method in enumerate(arguments.methods):
                folder = Path(scratch, str(number))
                folder.mkdir()
                cells.append(Cell(method, folder))
            steps: dict[str, int] = {}
            for visit in range(arguments.rounds):
                for number, cell in enumerate(cells):
                    if visit == 0:
                        script = [WORKER, cell.method, arguments.model, str(cell.folder)]
                        cell.processes = network.start(script, port=29400 + number)
                        warm = cell.visit(WARM_UP, START_LIMIT + WARM_UP * limit / 5)
                        if warm is not None:
                            slowest = min(warm[0]["seconds"])
                            steps[cell.method] = min(MOST, max(FEWEST, int(arguments.seconds / slowest)))
                    if cell.failure:
                        if visit == 0:
                            _say(f"{hosts} hosts, {link}, {cell.method}: {cell.failure}")
                        continue
                    answer = cell.visit(steps[cell.method], steps[cell.method] * limit)
                    if answer is not None:
                        cell.answers.append(answer)
                    if visit == arguments.rounds - 1:
                        if arguments.profile and cell.method.startswith("vote") and not cell.failure:
                            profiled = cell.visit(10, 10 * limit, profile=True)
                            if profiled is not None:
                                title = f"{hosts} hosts, {link}, {cell.method}: 10 steps of rank 0"
                                shown = profiled[0]["profile"].strip()
                                profiles += [f"### {title}", "", "```", shown, "```", ""]
                        cell.end()
                    _say(f"{hosts} hosts, {link}, {cell.method}: {cell.failure or f'{cell.median:.0f} ms'}")
        finally:
            for cell in cells:
                cell.end()
    return cells


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(cells: Sequence[Cell], hosts: int, link: str, parameters: int) -> tuple[list[str], list[str]]:
    """Markdown of one network, and rows of the aims."""
    by_name = {cell.method: cell for cell in cells if cell.answers}
    ideal = 2 * (hosts - 1) / hosts * parameters / 8  # bytes of a vote
    base, alone = by_name.get("DDP fp32"), by_name.get("compute")
    wire = 8e3 * ideal / RATES[link][1]
    floor = None if alone is None else max(alone.median, wire)
    lines = [f"## {hosts} hosts, {link}", ""]
    if alone is not None and floor is not None:
        lines += [
            f"Floor of a vote's step: max({alone.median:.1f} ms of computing, {wire:.1f} ms of link) = "
            f"{floor:.1f} ms; of SSVR's, with two gradients, {_two_gradients(alone, wire):.1f} ms.",
            "",
        ]
    lines += [
        "| method | median ms | min to max | until gradients | DDP fp32 : this | this : floor "
        "| sent, bits per parameter | received | counted by us | sent : 2(n-1)/n bits |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for cell in cells:
        if not cell.answers:
            lines.append(f"| {cell.method} | failed: {cell.failure.replace('|', '/')} | | | | | | | | |")
            continue
        votes = cell.method.startswith("vote")
        lowest = _two_gradients(alone, wire) if alone is not None and "SSVR" in cell.method else floor
        bits = {key: 8 * cell.per_step(key) / parameters for key in ("sent", "received", "counted")}
        values = [
            f"{cell.median:.1f}",
            f"{min(cell.steps):.1f} to {max(cell.steps):.1f}",
            "" if cell.local is None else f"{cell.local:.1f}",
            "" if base is None else f"{base.median / cell.median:.2f}",
            "" if lowest is None or not votes else f"{cell.median / lowest:.2f}",
            f"{bits['sent']:.3f}",
            f"{bits['received']:.3f}",
            f"{bits['counted']:.3f}" if votes else "",
            f"{cell.per_step('sent') / ideal:.3f}" if votes else "",
        ]
        note = f" (then failed: {cell.failure})" if cell.failure else ""
        lines.append(f"| {cell.method}{note} | " + " | ".join(values) + " |")
    lines += ["", *_phases(cells)]
    aims = []
    for name in VOTES:
        if name not in by_name:
            continue
        cell, where = by_name[name], f"{hosts} hosts, {link}, {name}"
        if base is not None:
            aims += _aim(where, "DDP fp32 : this", base.median / cell.median, ATLEAST[link], at_least=True)
        if floor is not None and link == "100 Mbit/s":
            aims += _aim(where, "this : floor", cell.median / floor, 1.3)
        aims += _aim(where, "bytes sent : 2(n-1)/n bits", cell.per_step("sent") / ideal, 1.07)
    return lines, aims


ATLEAST = {"100 Mbit/s": 25.0, "1 Gbit/s": 7.0, "unshaped": 1.0}


def _two_gradients(alone: Cell, wire: float) -> float:
    assert alone.local is not None
    return max(alone.median + alone.local, wire)


def _aim(where: str, what: str, value: float, aim: float, at_least: bool = False) -> list[str]:
    met = value >= aim if at_least else value <= aim
    word = "at least" if at_least else "at most"
    return [f"| {where} | {what} | {value:.2f} | {word} {aim:g} | {'yes' if met else 'no'} |"]


def _phases(cells: Sequence[Cell]) -> list[str]:
    """Where a vote's time goes, by its own clocks."""
    votes = [cell for cell in cells if cell.answers and cell.method.startswith("vote")]
    names = sorted({key for cell in votes for key in cell.answers[0][0]["per_step"] if key.endswith(" s")})
    if not names:
        return []
    lines = ["Milliseconds of a step in each phase of the vote (the largest of all ranks):", ""]
    lines += ["| method | " + " | ".join(name[:-2] for name in names) + " |", "|---|" + "---:|" * len(names)]
    for cell in votes:
        lines.append(
            f"| {cell.method} | " + " | ".join(f"{1000 * cell.per_step(name):.1f}" for name in names) + " |"
        )
    return [*lines, ""]


def plot(path: Path, found: dict[tuple[int, str], list[Cell]], title: str) -> None:
    """Bars of step times."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    counts = sorted({hosts for hosts, _ in found})
    methods = [cell.method for cell in next(iter(found.values()))]
    figure, axes = pyplot.subplots(
        1, len(counts), figsize=(7.5 * len(counts), 0.55 * len(methods) + 1.4), squeeze=False, sharey=True
    )
    colors = dict(zip(RATES, ("#2b6cb0", "#63b3ed", "#c3dafe"), strict=True))
    for axis, hosts in zip(axes[0], counts, strict=True):
        links = [link for count, link in found if count == hosts]
        height = 0.8 / len(links)
        for place, link in enumerate(links):
            for row, cell in enumerate(found[hosts, link]):
                y = row + (place - (len(links) - 1) / 2) * height
                label = link if row == 0 else None
                if cell.answers:
                    axis.barh(y, cell.median, height, color=colors[link], label=label)
                    axis.text(cell.median * 1.04, y, f"{cell.median:.0f}", va="center", fontsize=7)
                else:
                    across = axis.get_yaxis_transform()  # x in parts of the axis
                    axis.text(0.01, y, "failed", transform=across, va="center", fontsize=7, color="#9b2c2c")
        axis.set_xscale("log")
        axis.margins(x=0.12)
        axis.set_yticks(range(len(methods)), methods)
        axis.set_ylim(len(methods) - 0.4, -0.6)
        axis.set_xlabel("milliseconds per step")
        axis.set_title(f"{hosts} hosts", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(frameon=False, loc="lower right")
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=75, facecolor="white")


def _chosen(names: Sequence[str]) -> Any:
    """Parser of names split by ``;`` (there are commas in them)."""

    def parse(text: str) -> list[str]:
        chosen = [name.strip() for name in text.split(";")]
        unknown = [name for name in chosen if name not in names]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown {unknown}: choose from {'; '.join(names)}")
        return chosen

    return parse


def _congestion_control() -> str:
    path = Path("/proc/sys/net/ipv4/tcp_congestion_control")
    return path.read_text().strip() if path.exists() else "unknown"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, nargs="+", default=[2], help="e.g. 2 4 (default: 2)")
    parser.add_argument("--model", choices=MODELS, default="mlp", help="default: %(default)s")
    parser.add_argument("--links", type=_chosen(list(RATES)), default=list(RATES), help="names, split by ;")
    parser.add_argument("--methods", type=_chosen(list(METHODS)), default=list(METHODS), help="names, by ;")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=1.5, help="of a visit, about (default: %(default)s)")
    parser.add_argument("--profile", action="store_true", help="show where the time of votes goes")
    parser.add_argument("--output", type=Path, help="markdown file to write, beside printing it")
    parser.add_argument("--plot", type=Path, help="picture to write (needs matplotlib)")
    arguments = parser.parse_args()
    if min(arguments.hosts) < 2 or arguments.rounds < 1 or arguments.seconds <= 0:
        parser.error("--hosts must be at least 2, --rounds at least 1 and --seconds positive")

    model = MODELS[arguments.model]
    arguments.parameters = sum(parameter.numel() for parameter in model.build().parameters())
    load = os.getloadavg()[0]
    found: dict[tuple[int, str], list[Cell]] = {}
    profiles: list[str] = []
    try:
        for hosts in arguments.hosts:
            for link in arguments.links:
                found[hosts, link] = measure(arguments, hosts, link, profiles)
    except NetworkUnavailableError as error:
        sys.exit(f"link.py needs network namespaces: {error}")
    what = f"{model.description}, {arguments.parameters / 1e6:.1f} M parameters"
    lines = heading("Steps over slow links", arguments.rounds)
    lines += [
        f"Training {what}; gloo, one rank with one thread per host, all hosts on this machine's "
        f"{os.cpu_count()} cores (load average before it began: {load:.1f}), TCP congestion control "
        f"{_congestion_control()}. `compute` is forward, backward and SGD with momentum, on all hosts at "
        f"once. Bytes are those of the busiest host's interface, headers and acknowledgements included.",
        "",
        BURST,
        "",
    ]
    aims: list[str] = []
    for (hosts, link), cells in found.items():
        rows, more = table(cells, hosts, link, arguments.parameters)
        lines += rows
        aims += more
    if arguments.model == "mlp" and aims:
        lines += ["## Aims", "", "| where | what | measured | aim | met |", "|---|---|---:|---:|---|"]
        lines += [*aims, ""]
    if profiles:
        lines += ["## Profiles", "", *profiles]
    text = "\n".join(lines).rstrip() + "\n"
    publish(text, arguments.output)
    if arguments.plot is not None:
        plot(arguments.plot, found, f"Training {what}")


if __name__ == "__main__":
    main()
