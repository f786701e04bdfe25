"""Pieces of HTML that the sections of the page share. Their arguments are text, which they escape."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from html import escape
from itertools import zip_longest

from lightning_signvr.report.chart import Line, line_chart
from lightning_signvr.report.runs import Run


def table(caption: str, head: list[str], rows: Iterable[list[str]], bars: Iterable[float] = ()) -> str:
    """A table whose first column names the rows.

    Args:
        caption: above it; may be empty.
        head: titles of the columns.
        rows: their cells.
        bars: a share for each row, drawn at its end.

    Example:
        >>> "<td>1 &lt; 2</td>" in table("", ["", "claim"], [["first", "1 < 2"]])
        True
    """
    drawn = [f'<td class="bar">{_bar(share)}</td>' for share in bars]
    titles = [f'<th scope="col">{escape(title)}</th>' for title in head] + ["<td></td>"] * bool(drawn)
    lines = [
        f'<th scope="row">{escape(first)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        for first, *cells in rows
    ]
    body = "".join(f"<tr>{line}{bar}</tr>" for line, bar in zip_longest(lines, drawn, fillvalue=""))
    return (
        '<div class="wide"><table>'
        + (f"<caption>{escape(caption)}</caption>" if caption else "")
        + f"<thead><tr>{''.join(titles)}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def comparison(runs: list[Run], values_of: Callable[[Run], dict[str, str]]) -> str:
    """A table with a column for each run, of values that have names; empty where there are none."""
    columns = [values_of(run) for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[name, *(column.get(name, "") for column in columns)] for name in names]
    return table("", ["", *(run.name for run in runs)], rows) if rows else ""


def figure(title: str, tag: str, sentence: str, lines: list[Line], legend: bool) -> str:
    """A chart with its title and a sentence on how to read it.

    Args:
        title: of the chart; the tag itself where empty.
        tag: what the values were logged under; may be empty.
        sentence: how to read it.
        lines: of the chart.
        legend: name the lines.
    """
    heading = f"{escape(title)} <code>{escape(tag)}</code>" if title else escape(tag)
    names = "".join(
        '<li><svg viewBox="0 0 32 12" aria-hidden="true">'
        f'<path class="line s{line.style}" d="M1 6H31"/></svg>{escape(line.name)}</li>'
        for line in lines
    )
    return (
        f"<figure><figcaption><h3>{heading}</h3><p>{escape(sentence)}</p></figcaption><div>"
        + (f'<ul class="legend">{names}</ul>' if legend else "")
        + f"{line_chart(f'{title} {tag}'.strip(), lines)}</div></figure>"
    )


def _bar(share: float) -> str:
    width = 100 * min(1.0, share) if share > 0 else 0.0  # not a number has none
    return (
        '<svg viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect width="100" height="6"/><rect width="{width:.1f}" height="6"/></svg>'
    )
