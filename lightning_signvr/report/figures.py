"""The few numbers that sum up a run."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from statistics import fmean

from lightning_signvr.report.numbers import byte_count, date, duration, plain
from lightning_signvr.report.runs import Points, Run
from lightning_signvr.report.tags import Place, chart_tags

_SENT, _SAVINGS, _AGREEMENT = "comm/bytes_sent", "comm/savings_vs_fp32", "sign_vote/agreement"
_OF_THE_MONITOR = ("loss/train", "grad_norm/local", _SENT, _AGREEMENT)


def figures(run: Run) -> dict[str, str]:
    """Headline figures of a run, by what they are called; those that nothing was logged for are left out.

    Example:
        >>> scalars = {"comm/bytes_sent": [(9, 500.0)], "comm/savings_vs_fp32": [(9, 32.0)]}
        >>> told = figures(Run("version_0", scalars, {}, {}, started=0.0, seconds=9.0))
        >>> told["Steps"], told["Sent by a worker"], told["Saved"]
        ('10', '5.0 kB', '155.0 kB')
    """
    told = {"Begun": date(run.started), "Time": duration(run.seconds), "Steps": f"{steps(run):,}"}
    told |= {f"Final {tag}": plain(run.last(tag)) for tag in chart_tags(run.scalars, Place.RESULT)}
    agreement = mean_agreement(run)
    if agreement is not None:
        told["Mean sign agreement"] = plain(agreement)
    sent, saved = bytes_sent(run)
    if sent:
        told["Sent by a worker"] = byte_count(sent)
    if saved:
        told["Saved"] = byte_count(saved)
    return told


def in_a_sentence(run: Run) -> str:
    """The same for people who have never seen a vote; empty where nothing was sent.

    Example:
        >>> scalars = {"comm/bytes_sent": [(9, 500.0)], "comm/savings_vs_fp32": [(9, 32.0)]}
        >>> in_a_sentence(Run("version_0", scalars, {}, {}, started=0.0, seconds=9.0))
        'In 10 steps each worker sent 5.0 kB. Averaging float32 gradients sends 160.0 kB, 32 times as much.'
    """
    sent, saved = bytes_sent(run)
    if not sent or not saved:
        return ""
    return (
        f"In {steps(run):,} steps each worker sent {byte_count(sent)}. Averaging float32 gradients sends "
        f"{byte_count(sent + saved)}, {(sent + saved) / sent:.3g} times as much."
    )


def steps(run: Run) -> int:
    """How many were made up to the last log. Lightning logs under the number of the steps before."""
    made = [run.scalars[tag][-1][0] + 1 for tag in _OF_THE_MONITOR if tag in run.scalars]
    return max(made or (points[-1][0] for points in run.scalars.values()))


def mean_agreement(run: Run) -> float | None:
    """Over all logged steps, and over the optimizers where there are several."""
    values = [value for tag in _numbered(run, _AGREEMENT) for _, value in run.scalars[tag] if value == value]
    return fmean(values) if values else None


def bytes_sent(run: Run) -> tuple[float, float]:
    """By the worker that logs, in all steps up to the last log: sent, and saved against float32.

    Example:
        >>> scalars = {"comm/bytes_sent": [(4, 10.0), (9, 30.0)]}
        >>> scalars["comm/savings_vs_fp32"] = [(4, 2.0), (9, 3.0)]
        >>> bytes_sent(Run("version_0", scalars, {}, {}, started=0.0, seconds=9.0))
        (200.0, 350.0)
    """
    sent = saved = 0.0
    for tag in _numbered(run, _SENT):
        points = run.scalars[tag]
        savings = dict(run.scalars.get(tag.replace(_SENT, _SAVINGS), []))
        for (step, per_step), covered in zip(points, _steps_covered(points), strict=True):
            sent += per_step * covered
            saved += per_step * covered * (savings.get(step, 1.0) - 1.0)
    return sent, saved


def _numbered(run: Run, key: str) -> Iterable[str]:
    """The tags of a key: itself, or with the number of each optimizer."""
    return [tag for tag in run.scalars if tag == key or tag.removeprefix(f"{key}/").isdecimal()]


def _steps_covered(points: Points) -> list[int]:
    """How many steps each point is the mean of: those since the point before."""
    if not points:
        return []
    since = [after[0] - before[0] for before, after in pairwise(points)]
    # the first one of a run that was resumed elsewhere does not cover all steps since 0
    return [min(points[0][0] + 1, *since[:1]) if since else points[0][0] + 1, *since]
