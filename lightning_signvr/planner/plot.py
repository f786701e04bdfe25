"""The plan as a picture."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Any

from lightning_signvr.planner.breakeven import at_speed, break_even
from lightning_signvr.planner.cost import Prediction, Problem, predict
from lightning_signvr.planner.units import format_rate

COLOURS = {
    "fp32": "#4c566a",
    "bf16": "#8f9bb3",
    "powersgd": "#d08a3a",
    "vote": "#1f77b4",
    "hierarchical": "#7fb7de",
}
PARTS = {"compute": "#c9ced8", "local": "#e3a857", "exchange": "#c0504d"}
LABELS = {
    "compute": "forward and backward",
    "local": "packing, casting, update",
    "exchange": "waiting for the exchange",
}
POINTS = 97


def write_plot(problem: Problem, predictions: dict[str, Prediction], path: Path) -> None:
    """Draw where a step's time goes, and how it depends on the speed of the link.

    Args:
        problem: what was planned.
        predictions: of :func:`~lightning_signvr.planner.predict`.
        path: file to write; its suffix says the format (png, svg, pdf).

    Raises:
        ValueError: matplotlib is missing, or does not know the format.
        OSError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("a plot needs matplotlib: pip install 'lightning-signvr[plots]'") from error
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_bars(left, predictions)
    _draw_speeds(right, problem)
    figure.savefig(path, dpi=144)


def _draw_bars(axes: Any, predictions: dict[str, Prediction]) -> None:
    names = [prediction.name for prediction in predictions.values()]
    offsets = [0.0] * len(names)
    for part, colour in PARTS.items():
        widths = [1e3 * getattr(prediction, part) for prediction in predictions.values()]
        axes.barh(names, widths, left=offsets, color=colour, label=LABELS[part])
        offsets = [offset + width for offset, width in zip(offsets, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("predicted step, ms")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small", loc="lower right")


def _draw_speeds(axes: Any, problem: Problem) -> None:
    here = problem.cluster.link.bytes_per_second
    speeds = [here * 10 ** (4 * index / (POINTS - 1) - 2) for index in range(POINTS)]
    rows = [predict(at_speed(problem, speed)) for speed in speeds]
    for name in rows[0]:
        axes.loglog(
            [8e-9 * speed for speed in speeds],
            [1e3 * row[name].seconds for row in rows],
            color=COLOURS[name],
            label=rows[0][name].name,
        )
    axes.axvline(8e-9 * here, color="black", linewidth=0.8, linestyle=":")
    for other in ("fp32", "bf16"):
        speed = break_even(problem, other) if problem.cluster.nodes > 1 else inf
        if speeds[0] <= speed <= speeds[-1]:
            seconds = predict(at_speed(problem, speed))[other].seconds
            axes.plot(8e-9 * speed, 1e3 * seconds, "o", color=COLOURS[other])
            axes.annotate(
                format_rate(speed),
                (8e-9 * speed, 1e3 * seconds),
                textcoords="offset points",
                xytext=(4, 6),
                fontsize="small",
            )
    axes.set_xlabel("link, Gbit/s (dotted: this one; dots: break-even)")
    axes.set_ylabel("predicted step, ms")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
