"""Layers and workers that stand out."""

from __future__ import annotations

import math
import re
from statistics import fmean

from lightning_signvr.report.chart import Line
from lightning_signvr.report.markup import figure, table
from lightning_signvr.report.numbers import plain
from lightning_signvr.report.runs import Run
from lightning_signvr.report.tags import LAYER_AGREEMENT, LAYER_NORM, WORKER_AGREEMENT

_MOST_LAYERS = 10
_MOST_LINES = 6


def layers(runs: list[Run]) -> str:
    """The layers with the lowest agreement at the end; empty where no layer was logged.

    Example:
        >>> run = Run("version_0", {"sign_vote/agreement/conv": [(9, 0.5)]}, {}, {}, 0.0, 9.0)
        >>> "conv" in layers([run])
        True
    """
    tables = []
    for run in runs:
        agreement = {name: run.last(tag) for name, tag in _group(run, LAYER_AGREEMENT).items()}
        norm = {name: run.last(tag) for name, tag in _group(run, LAYER_NORM).items()}
        names = sorted(
            {*agreement, *norm},
            key=lambda name: (_low_first(agreement.get(name, math.nan)), -norm.get(name, 0.0), name),
        )
        if names:
            shown = names[:_MOST_LAYERS]
            rows = [
                [name, *(plain(values[name]) if name in values else "" for values in (agreement, norm))]
                for name in shown
            ]
            caption = f"{run.name}: {len(shown)} of {len(names)}"
            bars = [agreement.get(name, 0.0) for name in shown]
            tables.append(table(caption, ["layer", "sign agreement", "gradient norm"], rows, bars))
    if not tables:
        return ""
    return (
        "<p>As they were at the end, those with the lowest sign agreement first. A layer at the level of "
        "coin tosses learns little: its gradients are too small or too noisy.</p>"
        f'<div class="charts">{"".join(tables)}</div>'
    )


def workers(runs: list[Run]) -> str:
    """Each worker's agreement with the outcome; empty where none was logged.

    Example:
        >>> run = Run("version_0", {"sign_vote/worker_agreement/1": [(9, 0.5)]}, {}, {}, 0.0, 9.0)
        >>> "worker 1" in workers([run])
        True
    """
    parts = []
    for run in runs:
        tags = _group(run, WORKER_AGREEMENT)
        ranks = sorted(tags, key=_numbers)
        if not ranks:
            continue
        lowest = sorted(ranks, key=lambda rank: _low_first(run.last(tags[rank])))[:_MOST_LINES]
        lines = [
            Line(_worker(rank), run.scalars[tags[rank]], style)
            for style, rank in enumerate(sorted(lowest, key=_numbers))
        ]
        sentence = "A line that leaves the others is a worker to look at."
        if len(lines) < len(ranks):
            sentence += f" Drawn are the {len(lines)} lowest of {len(ranks)}."
        values = [[value for _, value in run.scalars[tags[rank]]] for rank in ranks]
        rows = [
            [_worker(rank), plain(fmean(own)), plain(own[-1]), "against the others" if own[-1] < 0.5 else ""]
            for rank, own in zip(ranks, values, strict=True)
        ]
        parts.append(figure(run.name, "", sentence, lines, legend=True))
        parts.append(table(run.name, ["", "mean", "at the end", ""], rows, [own[-1] for own in values]))
    if not parts:
        return ""
    return (
        "<p>How much of its votes a worker cast with the majority. One far below the others has wrong data, "
        "wrong labels or a fault, or votes against them on purpose; below 0.5 it works against them.</p>"
        f'<div class="charts">{"".join(parts)}</div>'
    )


def _group(run: Run, pattern: re.Pattern[str]) -> dict[str, str]:
    """Tags of a run, by what the pattern's group finds in them."""
    matches = (pattern.fullmatch(tag) for tag in run.scalars)
    return {match[1]: match[0] for match in matches if match}


def _low_first(value: float) -> float:
    """Sorts values that are unknown, since nobody voted, to the end."""
    return math.inf if math.isnan(value) else value


def _numbers(rank: str) -> list[int]:
    return [int(part) for part in rank.split("/")]


def _worker(rank: str) -> str:
    """Name of a worker whose rank may be followed by the number of an optimizer."""
    return f"worker {rank.replace('/', ', optimizer ')}"
