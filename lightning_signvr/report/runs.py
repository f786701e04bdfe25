"""Runs below a folder: which there are, and the event files of each put together."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lightning_signvr.report.events import EventFile, read_event_file

MOST_RUNS = 6

Points = list[tuple[int, float]]


class ReportError(Exception):
    """No report can be made; the text says why and what to do."""


@dataclass(frozen=True)
class Run:
    """One run: all event files that lie in one folder.

    Attributes:
        name: the folder, as seen from the folder that was asked for.
        scalars: of each tag, pairs of step and value; steps increase.
        texts: of each tag, the last text.
        settings: hyper-parameters.
        started: seconds since 1970.
        seconds: during which events were written; pauses between a crash and a resume do not count.

    Example:
        >>> run = Run("version_0", {"loss": [(0, 2.5), (10, 0.5)]}, {}, {}, started=0.0, seconds=9.0)
        >>> run.last("loss")
        0.5
    """

    name: str
    scalars: dict[str, Points]
    texts: dict[str, str]
    settings: dict[str, str]
    started: float
    seconds: float

    def last(self, tag: str) -> float:
        """The value logged last under a tag."""
        return self.scalars[tag][-1][1]


def read_runs(folder: Path) -> tuple[list[Run], list[str]]:
    """Read the runs in a folder and in the folders below it.

    Args:
        folder: a run's own folder, or one that holds the folders of several runs.

    Returns:
        The runs in the order of their names, at most the ``MOST_RUNS`` written to last; and what could
        not be read or was left out, in sentences.

    Raises:
        ReportError: there is no such folder, or nothing in it that can be read.
    """
    if not folder.is_dir():
        raise ReportError(
            f"RUN_DIR {folder} is not a folder. Give the folder that holds a run's event files."
        )
    groups: dict[Path, list[Path]] = {}
    for path in sorted(folder.rglob("*tfevents*")):
        if path.is_file():
            groups.setdefault(path.parent, []).append(path)
    if not groups:
        raise ReportError(
            f"RUN_DIR {folder} holds no TensorBoard event files (*tfevents*). Train with a "
            "TensorBoardLogger, and give the folder that it writes to."
        )
    problems = []
    newest = sorted(groups, key=lambda parent: max(path.stat().st_mtime for path in groups[parent]))
    if len(newest) > MOST_RUNS:
        problems.append(
            f"{len(newest)} runs were found. The {MOST_RUNS} written to last are shown; "
            "the folder of another one shows that one."
        )
    runs = []
    for parent in sorted(newest[-MOST_RUNS:], key=_natural_order):
        name = parent.relative_to(folder).as_posix() if parent != folder else folder.resolve().name
        files = [read_event_file(path) for path in groups[parent]]
        problems += [f"{name}: {file.problem}" for file in files if file.problem]
        run = merge(name, files)
        if run.scalars:
            runs.append(run)
        elif not any(file.problem for file in files):
            problems.append(f"{name}: its event files hold no scalars.")
    if not runs:
        raise ReportError("\n".join([f"Nothing in RUN_DIR {folder} can be drawn.", *problems]))
    return runs, problems


def merge(name: str, files: Iterable[EventFile]) -> Run:
    """Put event files together in the order in which they were begun.

    Where a later file goes back to a step (a resume from a checkpoint), what was logged from that step
    on before it is dropped.

    Args:
        name: of the run.
        files: those of the run; files without an event do not count.

    Example:
        >>> crashed = EventFile({"loss": [(1, 0.9), (2, 0.8), (3, 0.7)]}, started=0.0, ended=3.0)
        >>> resumed = EventFile({"loss": [(2, 0.6)]}, started=10.0, ended=12.0)
        >>> run = merge("version_0", [resumed, crashed])
        >>> run.scalars, run.seconds
        ({'loss': [(1, 0.9), (2, 0.6)]}, 5.0)
    """
    scalars: dict[str, Points] = {}
    texts: dict[str, str] = {}
    settings: dict[str, str] = {}
    spans = []
    for started, file in sorted(
        ((file.started, file) for file in files if file.started is not None), key=lambda pair: pair[0]
    ):
        spans.append((started, file.ended or started))
        texts.update(file.texts)
        settings.update(file.settings)
        for tag, added in file.scalars.items():
            points = scalars.setdefault(tag, [])
            for step, value in added:
                while points and points[-1][0] >= step:
                    points.pop()
                points.append((step, value))
    return Run(name, scalars, texts, settings, spans[0][0] if spans else 0.0, _covered(spans))


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of a union of intervals that come in the order of their starts."""
    total, reached = 0.0, float("-inf")
    for start, end in spans:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _natural_order(path: Path) -> list[tuple[int, str]]:
    """Sorts version_10 after version_9."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
