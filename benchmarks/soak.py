"""Soak test: training for long while workers are killed, restarted, added, removed and fed with NaN.

``python benchmarks/soak.py --output benchmarks/results/soak.md``

Three workers train on scikit-learn's digits, each a process, with gloo on this machine. At random times one
of them or all are killed with -9. The others must end by themselves, with an error that names the dead. All
start again from the last checkpoint, sometimes as two or four workers. Single workers have NaN or inf in
their gradients in random steps. What must hold is checked after each step; see soak_checks.py. The last
quarter of the steps has no kills, to see whether anything grows. Exit status 1 where something is violated.

The plan (steps, victims, numbers of workers, NaN) follows from ``--seed``; at which instant a kill arrives
does not. Linux only.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import random
import sys
import tempfile
import time
from datetime import date
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
from soak_checks import ALIVE, INVARIANTS, SURVIVORS, Observer
from soak_worker import METHODS, SPOILS, Done, Failed, Restored, Step, Task, make_net, work, write_data
from timing import cpu_model, publish

import lightning_signvr
from lightning_signvr.checkpoint_files import load

WORKERS = 3
SIZES = (2, 3, 4)
SILENCE = 60.0  # seconds
SURVIVE = 20.0  # seconds

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["lightning_signvr", "lightning_signvr.checkpoint_files"])


class Kill(NamedTuple):
    """Planned.

    Attributes:
        step: after which it happens.
        saving: whether it happens while rank 0 writes the checkpoint.
        delay: seconds from there, else.
        victims: ranks.
        workers: after the restart.
    """

    step: int
    saving: bool
    delay: float
    victims: list[int]
    workers: int


def make_plan(options: argparse.Namespace) -> list[Kill]:
    """All kills of a run."""
    draw, step, workers = random.Random(options.seed), 0, WORKERS
    kills: list[Kill] = []
    while True:
        step += 1 + int(draw.expovariate(1 / options.kill_every))
        saving = draw.random() < 0.25
        if saving:
            step += -step % options.save_every
        if step >= options.steps - options.calm:
            return kills
        victims = [0] if saving else [draw.randrange(workers)]
        if draw.random() < 1 / 3:
            victims = list(range(workers))
        if workers != WORKERS and draw.random() < 0.5:
            workers = WORKERS
        elif draw.random() < 0.3:
            workers = draw.choice([size for size in SIZES if size != workers])
        kills.append(Kill(step, saving, draw.uniform(0, 0.01), victims, workers))


class Group:
    """The workers from one start to their end.

    Args:
        life: number of the start.
        kill: that is to come; None for none.

    Attributes:
        seconds: from the kill to the error of each survivor.
        accuracy: of those that have taken all steps; None before.
    """

    def __init__(self, task: Task, workers: int, life: int, kill: Kill | None, observer: Observer) -> None:
        self._kill, self._observer, self._checks = kill, observer, observer.checks
        self._folder = task.checkpoint.parent
        self._killed_at: float | None = None
        self._errors: dict[int, str] = {}
        self._ranks: dict[Any, int] = {}
        self._processes = []
        self.seconds: list[float] = []
        self.accuracy: float | None = None
        for rank in range(workers):
            ours, theirs = _context.Pipe(duplex=False)
            process = _context.Process(target=work, args=(theirs, task, rank, workers, life))
            process.start()
            theirs.close()
            self._ranks[ours] = rank
            self._processes.append(process)

    def watch(self) -> bool:
        """Until all have ended; whether the training may go on or is done."""
        fine = True
        while self._ranks and fine:
            limit = SILENCE if self._killed_at is None else self._killed_at + SURVIVE - time.monotonic()
            ready = wait(list(self._ranks), max(0.0, limit))
            if not ready:
                late = sorted(self._ranks.values())
                name = ALIVE if self._killed_at is None else SURVIVORS
                self._checks.holds(name, False, f"no word from {late} in time")
                fine = False
            for connection in ready:
                fine = self._listen(connection) and fine  # type: ignore[arg-type]
        for process in self._processes:
            process.kill()
            process.join()
        if self._kill is not None and self._killed_at is not None:
            self._observer.survived(self._errors, self._kill.victims)
        self._observer.ends()
        return fine

    def _listen(self, connection: Connection) -> bool:
        """Take in what a worker says; whether it may say that."""
        rank = self._ranks[connection]
        expected = self._killed_at is not None
        try:
            word = connection.recv()
        except (EOFError, OSError):  # OSError: in the middle of a word
            del self._ranks[connection]
            connection.close()
            victim = expected and self._kill is not None and rank in self._kill.victims
            fine = victim or rank in self._errors or self.accuracy is not None
            self._checks.holds(ALIVE, fine, f"rank {rank} died without a word")
            return fine
        if isinstance(word, Restored):
            self._observer.restored(rank, word)
        elif isinstance(word, Step):
            self._observer.stepped(rank, word)
            if self._kill is not None and not expected and word.step >= self._kill.step:
                self._kill_now(self._kill)
        elif isinstance(word, Done):
            self.accuracy = word.accuracy
        elif isinstance(word, Failed):
            self._errors[rank] = word.text
            if not expected:
                self._checks.holds(ALIVE, False, f"rank {rank}: {word.text}")
                return False
            assert self._killed_at is not None
            self.seconds.append(time.monotonic() - self._killed_at)
        return True

    def _kill_now(self, kill: Kill) -> None:
        if kill.saving:
            latest = time.monotonic() + 0.1
            while time.monotonic() < latest and not any(self._folder.glob(".unfinished-*")):
                pass
        else:
            time.sleep(kill.delay)
        self._killed_at = time.monotonic()
        for rank in kill.victims:
            self._processes[rank].kill()


class Result(NamedTuple):
    """Of a run.

    Attributes:
        kills: that have happened.
        resizes: restarts with another number of workers, among the ``restarts``.
        to_error: seconds from a kill to the error of each survivor.
        accuracy: NaN where the training did not come to its end.
        seconds: of all.
    """

    options: argparse.Namespace
    observer: Observer
    kills: list[Kill]
    resizes: int
    restarts: int
    to_error: list[float]
    accuracy: float
    seconds: float


def run(options: argparse.Namespace) -> Result:
    """Train, kill and check until all steps are taken, or until the workers do what they must not."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "checkpoints").mkdir()
        write_data(folder)
        task = Task(
            folder,
            options.steps,
            options.seed,
            options.method,
            options.save_every,
            options.nan_every,
            options.lr,
            frozenset(options.spoil),
        )
        net = make_net(load(folder / "data.pt")["images"].shape[1])
        observer = Observer(task, [each.numel() for each in net.parameters()], options.warm_up)
        workers, resizes, to_error = WORKERS, 0, []
        plan = make_plan(options)
        for life, kill in enumerate([*plan, None]):
            observer.starts(workers)
            group = Group(task, workers, life, kill, observer)
            fine = group.watch()
            to_error += group.seconds
            if not fine or kill is None:
                break
            resizes += kill.workers != workers
            workers = kill.workers
            violations = sum(observer.checks.violated.values())
            print(
                f"{kill.step} of {options.steps} steps, killed {kill.victims}, on with {workers} workers, "
                f"{violations} violations, {time.monotonic() - began:.0f} s",
                file=sys.stderr,
                flush=True,
            )
        accuracy = float("nan") if group.accuracy is None else group.accuracy
        observer.finished(accuracy)
        done = plan[:life]
        return Result(options, observer, done, resizes, life, to_error, accuracy, time.monotonic() - began)


def report(result: Result) -> str:
    """Markdown."""
    options, observer, checks = result.options, result.observer, result.observer.checks
    worst, longest = observer.worst, observer.longest
    quarters = ", ".join(f"{loss:.4f}" for loss in observer.quarters())
    killed = sum(len(kill.victims) for kill in result.kills)
    to_error = f"{max(result.to_error):.1f}" if result.to_error else "-"
    rows = {
        "steps": f"{options.steps:,}",
        "steps run again after a restart": f"{observer.taken - options.steps:,}",
        "kills (workers)": f"{len(result.kills)} ({killed})",
        "restarts": result.restarts,
        "of these with another number of workers": result.resizes,
        "checkpoints cut off while they were written": observer.cut_off,
        "workers with NaN or inf in a step": f"{observer.injected:,}",
        "longest time from a kill to a survivor's error": f"{to_error} s",
        "errors of survivors": len(result.to_error),
        "of these that name the dead alone": observer.precise,
        "most growth of memory in a process after its warm-up": f"{worst.memory / 2**20:.2f} MB",
        f"in the longest life, {longest.steps:,} steps": f"{longest.most.memory / 2**20:.2f} MB",
        "in the second half of it": f"{longest.late / 2**20:.2f} MB",
        "most growth of file descriptors": worst.fds,
        "most growth of threads": worst.threads,
        "mean loss of each quarter": quarters,
        "accuracy on the test images": f"{result.accuracy:.3f}",
        "duration": f"{result.seconds:.0f} s",
    }
    lines = [
        "# Soak test",
        "",
        f"{date.today()}, {cpu_model()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"lightning-signvr {lightning_signvr.__version__}.",
        "",
        f"{options.method} on scikit-learn's digits, {WORKERS} workers (at times {SIZES[0]} or {SIZES[-1]}) "
        f"with gloo on one machine, a checkpoint every {options.save_every} steps, seed {options.seed}. "
        f"`kill -9` of one worker or of all every {options.kill_every} steps on average, none in the last "
        f"{options.calm:,}; NaN in a worker's batch or inf in its gradient every {options.nan_every} of its "
        "steps on average.",
        "",
        "| what | in this run |",
        "|---|---:|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        "",
        "| invariant | checked | violated |",
        "|---|---:|---:|",
        *(f"| {name} | {checks.made[name]:,} | {checks.violated[name]:,} |" for name in INVARIANTS),
        "",
        f"{sum(checks.violated.values()):,} violations in {sum(checks.made.values()):,} checks",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--method", choices=METHODS, default="SSVR", help="default: %(default)s")
    parser.add_argument("--lr", type=float, default=5e-5, help="at the start; default: %(default)s")
    parser.add_argument("--kill-every", type=int, default=200, help="steps, on average; default: %(default)s")
    parser.add_argument("--save-every", type=int, default=50, help="steps; default: %(default)s")
    parser.add_argument(
        "--nan-every", type=int, default=50, help="steps of a worker, on average; default: %(default)s"
    )
    parser.add_argument("--calm", type=int, help="steps at the end without kills; default: a quarter")
    parser.add_argument(
        "--warm-up",
        type=int,
        default=100,
        help="steps of a process before its growth counts; default: %(default)s",
    )
    parser.add_argument("--output", type=Path, help="markdown file to write, beside printing it")
    parser.add_argument("--spoil", nargs="+", choices=SPOILS, default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.calm is None:
        options.calm = options.steps // 4
    if min(options.steps, options.kill_every, options.save_every, options.nan_every, options.warm_up) < 1:
        parser.error("--steps, --kill-every, --save-every, --nan-every and --warm-up must be at least 1")
    if not 0 <= options.calm <= options.steps:
        parser.error(f"--calm must be between 0 and --steps, got {options.calm}")

    result = run(options)
    text = report(result)
    publish(text, options.output)
    if result.observer.checks.violated:
        sys.exit(1)


if __name__ == "__main__":
    main()
