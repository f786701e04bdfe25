"""Charts show the values that they are made of."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from lightning_signvr.report.chart import Line, decimate, line_chart
from lightning_signvr.report.runs import Points
from tests.report.pages import Page

NAN = math.nan


def _scale(svg: str, css: str, across: str) -> tuple[list[float], list[float]]:
    """Places and values of the ticks of an axis, as a reader sees them."""
    found = re.findall(rf'<text class="tick {css}" x="([\d.]+)" y="([\d.]+)">([^<]+)<', svg)
    ticks = [(float(x if across == "x" else y), text) for x, y, text in found if text != "step"]
    values = [float(text.replace("k", "e3").replace(",", "")) for _, text in ticks]
    return [place for place, _ in ticks], values


def _drawn(svg: str) -> list[list[list[tuple[float, float]]]]:
    """Of each line, its unbroken pieces: pairs of step and value, read off the axes."""
    x_places, steps = _scale(svg, "below", "x")
    y_places, values = _scale(svg, "left", "y")
    if "logarithmic" in svg:
        values = list(np.log10(values))
    step_of, value_of = np.polyfit(x_places, steps, 1), np.polyfit(y_places, values, 1)

    def point(text: str) -> tuple[float, float]:
        x, y = map(float, text.split())
        value = float(np.polyval(value_of, y))
        return float(np.polyval(step_of, x)), 10**value if "logarithmic" in svg else value

    return [
        [[point(pair) for pair in piece.replace("h0", "").split("L")] for piece in path.split("M")[1:]]
        for path in re.findall(r'<path class="line s\d" d="([^"]*)"', svg)
    ]


def _chart(*lines: Points) -> str:
    return line_chart("loss", [Line(f"run {style}", points, style) for style, points in enumerate(lines)])


@pytest.mark.parametrize("scale", [1e-5, 0.3, 1.0, 5e4, 1e10])
def test_lines_go_through_their_values(scale: float) -> None:
    random = np.random.default_rng(0)
    points = [(step, scale * float(value)) for step, value in zip(range(4, 400, 5), random.normal(size=80))]  # noqa: B905
    [[drawn]] = _drawn(_chart(points))
    np.testing.assert_allclose(np.array(drawn)[:, 0], [step for step, _ in points], atol=1)
    np.testing.assert_allclose(np.array(drawn)[:, 1], [value for _, value in points], atol=0.01 * scale * 6)


def test_values_of_very_different_sizes_are_drawn_on_a_logarithmic_axis() -> None:
    points = [(step, 10.0 ** (3 - step)) for step in range(10)]
    svg = _chart(points)
    [[drawn]] = _drawn(svg)
    np.testing.assert_allclose([value for _, value in drawn], [value for _, value in points], rtol=0.05)
    assert "The scale is logarithmic" in svg


def test_what_is_not_finite_leaves_a_gap_and_is_counted() -> None:
    points = [(0, 1.0), (1, 2.0), (2, NAN), (3, math.inf), (4, 3.0), (5, -math.inf), (6, 1.0), (7, 2.0)]
    svg = _chart(points)
    [pieces] = _drawn(svg)
    assert [[round(step) for step, _ in piece] for piece in pieces] == [[0, 1], [4], [6, 7]]
    assert "3 values that are not finite" in svg
    assert not re.search(r'(d|x|y|cx|cy)="[^"]*(nan|inf)', svg)


@pytest.mark.parametrize("points", [[(0, NAN)], [(0, math.inf), (5, NAN)]], ids=["one", "two"])
def test_nothing_finite_is_said(points: Points) -> None:
    assert "No value of it is a finite number" in _chart(points)


@pytest.mark.parametrize(
    "points",
    [
        [(0, 0.0)],
        [(300, 0.98)],
        [(0, 5.0), (1, 5.0)],
        [(0, -3e38), (10**12, 3e38)],
        [(3, 1e-45), (4, 0.0)],
        [(3, 1e-45), (4, 3e38)],
        [(-5, -2.0), (5, -2.0)],
        [(0, 1e299), (1, -1e299)],
    ],
    ids=["zero", "single", "constant", "huge", "denormal", "all sizes", "negative", "double"],
)
def test_any_values_can_be_drawn(points: Points) -> None:
    svg = _chart(points)
    Page(svg)
    for places in [_scale(svg, "below", "x")[0], _scale(svg, "left", "y")[0]]:
        assert 2 <= len(places) <= 9
        assert (min(places), max(places)) in [(52, 442), (12, 196)]  # the ends of the axes
    assert "nan" not in svg


def test_long_runs_keep_their_extremes_and_ends() -> None:
    random = np.random.default_rng(0)
    points = [(step, float(value)) for step, value in enumerate(random.normal(size=100_000))]
    points[54_321] = (54_321, 99.0)
    points[65_432] = (65_432, -99.0)
    kept = decimate(points, 0, 100_000, buckets=200)
    assert {(54_321, 99.0), (65_432, -99.0), points[0], points[-1]} <= set(kept)
    assert kept == sorted(kept)
    assert len(kept) <= 402
    for start in range(0, 100_000, 500):
        here = [value for step, value in kept if start <= step < start + 500]
        exact = [value for _, value in points[start : start + 500]]
        assert (min(here), max(here)) == (min(exact), max(exact))
    assert len(_chart(points)) < 20_000


def test_a_long_gap_stays_a_gap() -> None:
    points = [(step, NAN if 4000 <= step < 6000 else 1.0 + step % 7) for step in range(10_000)]
    [pieces] = _drawn(_chart(points))
    assert [round(piece[end][0], -2) for piece in pieces for end in (0, -1)] == [0, 4000, 6000, 10_000]


def test_last_values_stand_apart() -> None:
    svg = _chart(*[[(0, 9.0), (9, 1.0 + style / 1000)] for style in range(6)])
    labels = re.findall(r'<text class="last s(\d)" x="\d+" y="([\d.]+)">([\d.]+)<', svg)
    assert sorted((int(style), text) for style, _, text in labels) == [
        (0, "1"),
        *((style, f"1.00{style}") for style in range(1, 6)),
    ]
    places = sorted(float(place) for _, place, _ in labels)
    assert min(np.diff(places)) >= 13
    assert 0 < places[0] < places[-1] < 230


def test_the_mouse_tells_logged_values() -> None:
    first, second = [(0, 3.0), (100, 1.0), (200, 2.0)], [(50, 7.0)]
    told = re.findall("<title>([^<]*)</title>", _chart(first, second))
    assert told == [f"run 0: {value:g} at step {step}\nrun 1: 7 at step 50" for step, value in first]


def test_names_are_escaped_and_lines_put_into_words() -> None:
    svg = line_chart('<b>"loss"', [Line("<i>&", [(0, 2.0), (1, 3.0), (2, 1.0)], 0)])
    [label] = [own["aria-label"] for own in Page(svg).all("svg", role="img")]
    assert label == 'Line chart of <b>"loss". <i>&: 2 at step 0, 1 at step 2, between 1 and 3.'
    assert "<b>" not in svg
    assert "<i>" not in svg
