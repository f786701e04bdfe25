"""Line charts as SVG, to be put into a page whose style sheet colours them."""

from __future__ import annotations

import math
from bisect import bisect_left
from html import escape
from typing import NamedTuple

from lightning_signvr.report.axis import Axis, linear_axis, value_axis
from lightning_signvr.report.numbers import plain
from lightning_signvr.report.runs import Points

_WIDTH, _HEIGHT = 520, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 442, 12, 196
_BUCKETS = (_RIGHT - _LEFT) // 2  # of two pixels
_HOVER_COLUMNS = 40
_LABEL_DISTANCE = 14


class Line(NamedTuple):
    """A line of a chart.

    Attributes:
        name: what the reader knows it by.
        points: steps, which increase, and values; those that are not finite leave a gap.
        style: 0 to 5: its colour and its dashes.
    """

    name: str
    points: Points
    style: int


def line_chart(title: str, lines: list[Line]) -> str:
    """An SVG element with axes, lines, their last values, and their values under the mouse.

    Args:
        title: for those who hear the page.
        lines: each with at least one point.

    Returns:
        SVG, or a paragraph where no value is finite.

    Example:
        >>> line_chart("loss", [Line("run", [(0, 2.0), (9, 1.0)], style=0)])[:4]
        '<svg'
    """
    finite = [[point for point in line.points if _drawable(point[1])] for line in lines]
    values = [value for points in finite for _, value in points]
    if not values:
        return '<p class="note">No value of it is a finite number.</p>'
    steps = [line.points[end][0] for line in lines for end in (0, -1)]
    first, last = min(steps), max(steps)
    x = linear_axis(first, last, _LEFT, _RIGHT, most_ticks=max(1, min(6, last - first)))
    y = value_axis(values, _BOTTOM, _TOP, most_ticks=5)
    description = "; ".join(_in_words(line, points) for line, points in zip(lines, finite, strict=True))
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(f"Line chart of {title}. {description}.")}">',
        *_grid(x, y),
        *(_path(line, x, y) for line in lines),
        *_last_values(lines, finite, x, y),
        *_hover_columns(lines, x),
        "</svg>",
    ]
    missing = sum(len(line.points) for line in lines) - len(values)
    if missing:
        parts.append(f'<p class="note">{missing:,} values that are not finite numbers are left out.</p>')
    if y.logarithmic:
        parts.append('<p class="note">The scale is logarithmic.</p>')
    return "\n".join(parts)


def decimate(points: Points, first: int, last: int, buckets: int) -> Points:
    """At most about two points for each of equally wide buckets of steps, their extremes.

    A long run has more points than a chart has pixels; its peaks must stay.

    Args:
        points: whose steps increase.
        first: step at which the first bucket begins.
        last: step at which the last one ends.
        buckets: how many.

    Returns:
        The points themselves where they are few. Otherwise the first and the last one, the smallest
        and the largest finite one of each bucket, and one of each bucket without a finite one.

    Example:
        >>> decimate([(step, step % 10) for step in range(100)], 0, 100, buckets=2)
        [(0, 0), (9, 9), (50, 0), (59, 9), (99, 9)]
    """
    if len(points) <= 2 * buckets:
        return points
    groups: dict[int, Points] = {}
    for point in points:
        groups.setdefault((point[0] - first) * buckets // (last - first), []).append(point)
    kept = {points[0], points[-1]}
    for group in groups.values():
        finite = [point for point in group if _drawable(point[1])] or group[:1]
        kept |= {min(finite, key=lambda point: point[1]), max(finite, key=lambda point: point[1])}
    return sorted(kept)


def _drawable(value: float) -> bool:
    return abs(value) < 1e300  # false for what is not a number, too


def _in_words(line: Line, finite: Points) -> str:
    if not finite:
        return f"{line.name}: no finite value"
    values = [value for _, value in finite]
    return (
        f"{line.name}: {plain(values[0])} at step {finite[0][0]:,}, {plain(values[-1])} at step "
        f"{finite[-1][0]:,}, between {plain(min(values))} and {plain(max(values))}"
    )


def _grid(x: Axis, y: Axis) -> list[str]:
    parts = []
    for tick in y.ticks:
        at = f"{y.place(tick):.1f}"
        parts.append(f'<path class="grid" d="M{_LEFT} {at}H{_RIGHT}"/>')
        parts.append(f'<text class="tick left" x="{_LEFT - 6}" y="{at}">{y.label(tick)}</text>')
    for tick in x.ticks:
        at = f"{x.place(tick):.1f}"
        parts.append(f'<path class="grid" d="M{at} {_BOTTOM}v4"/>')
        parts.append(f'<text class="tick below" x="{at}" y="{_BOTTOM + 16}">{x.label(tick)}</text>')
    parts.append(f'<text class="tick below" x="{(_LEFT + _RIGHT) / 2}" y="{_HEIGHT - 9}">step</text>')
    return parts


def _path(line: Line, x: Axis, y: Axis) -> str:
    drawn, pen = [], "M"
    for step, value in decimate(line.points, int(x.ticks[0]), math.ceil(x.ticks[-1]), _BUCKETS):
        if not _drawable(value):
            pen = "M"
            continue
        place = f"{x.place(step):.1f} {y.place(value):.1f}"
        drawn.append(f"M{place}h0" if pen == "M" else f"L{place}")  # h0: a dot, should it stay alone
        pen = "L"
    return f'<path class="line s{line.style}" d="{"".join(drawn)}"/>'


def _last_values(lines: list[Line], finite: list[Points], x: Axis, y: Axis) -> list[str]:
    """A dot at each line's end, and its value beside it; moved apart where they would overlap."""
    ends = sorted(
        (y.place(points[-1][1]), x.place(points[-1][0]), line.style, points[-1][1])
        for line, points in zip(lines, finite, strict=True)
        if points
    )
    places: list[float] = []
    for at, *_ in ends:
        places.append(max(at, places[-1] + _LABEL_DISTANCE) if places else at)
    over = max(0.0, places[-1] - _BOTTOM)
    parts = []
    for place, (at, end, style, value) in zip(places, ends, strict=True):
        parts.append(f'<circle class="dot s{style}" cx="{end:.1f}" cy="{at:.1f}" r="3"/>')
        parts.append(
            f'<text class="last s{style}" x="{_RIGHT + 8}" y="{place - over:.1f}">{plain(value)}</text>'
        )
    return parts


def _hover_columns(lines: list[Line], x: Axis) -> list[str]:
    """Columns that can be pointed at; each tells the values logged nearest to its middle."""
    steps = [[step for step, _ in line.points] for line in lines]
    count = min(_HOVER_COLUMNS, max(len(own) for own in steps))
    width = (_RIGHT - _LEFT) / count
    parts = []
    for column in range(count):
        left = _LEFT + column * width
        middle = x.ticks[0] + (column + 0.5) / count * (x.ticks[-1] - x.ticks[0])
        told = [
            f"{line.name}: {plain(value)} at step {step:,}"
            for line, own in zip(lines, steps, strict=True)
            for step, value in [line.points[_nearest(own, middle)]]
        ]
        text = escape("\n".join(told))
        parts.append(
            f'<rect class="hover" x="{left:.1f}" y="{_TOP}" width="{width:.1f}" '
            f'height="{_BOTTOM - _TOP}"><title>{text}</title></rect>'
        )
    return parts


def _nearest(steps: list[int], wanted: float) -> int:
    after = bisect_left(steps, wanted)
    candidates = range(max(0, after - 1), min(len(steps), after + 1))
    return min(candidates, key=lambda index: abs(steps[index] - wanted))
