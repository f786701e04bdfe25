"""The page: figures, charts, tables and settings of the runs."""

from __future__ import annotations

from html import escape
from pathlib import Path

from lightning_signvr.report.chart import Line
from lightning_signvr.report.figures import figures, in_a_sentence
from lightning_signvr.report.markup import comparison, figure
from lightning_signvr.report.numbers import plain
from lightning_signvr.report.runs import ReportError, Run, read_runs
from lightning_signvr.report.standouts import layers, workers
from lightning_signvr.report.style import STYLE
from lightning_signvr.report.tags import Place, chart_tags, reading_of

_PANEL = "sign_vote/settings"
_LIGHTNINGS_PLACEHOLDER = ("hp_metric", [(0, -1.0)])


def write_report(folder: Path, out: Path) -> list[str]:
    """Write one HTML file about the runs in a folder. Nothing else is needed to look at it.

    Args:
        folder: a run's folder, or one that holds the folders of several runs.
        out: the file to write.

    Returns:
        What could not be read or was left out, in sentences; the page says it, too.

    Raises:
        ReportError: nothing in the folder can be read, or the file cannot be written.
    """
    runs, problems = read_runs(folder)
    text = render(folder.resolve().name, runs, problems)
    try:
        out.write_text(text, encoding="utf-8", errors="replace")  # a folder's name may be no text
    except OSError as error:
        raise ReportError(f"--out {out} cannot be written: {error.strerror}.") from error
    return problems


def render(title: str, runs: list[Run], problems: list[str]) -> str:
    """The page as text.

    Args:
        title: heading.
        runs: at least one.
        problems: sentences that stand on top.

    Example:
        >>> run = Run("version_0", {"loss": [(0, 2.0), (9, 1.0)]}, {}, {}, started=0.0, seconds=9.0)
        >>> "<h1>&lt;my run&gt;</h1>" in render("<my run>", [run], [])
        True
    """
    logged = [pair for run in runs for pair in run.scalars.items() if pair != _LIGHTNINGS_PLACEHOLDER]
    curves = {tag for tag, points in logged if len(points) > 1}
    once = chart_tags({tag for tag, _ in logged} - curves, Place.CURVE, Place.MORE)

    def logged_once(run: Run) -> dict[str, str]:
        return {tag: plain(run.last(tag)) for tag in once if tag in run.scalars}

    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}: training report</title>",
            f"<style>{STYLE}</style></head>",
            f"<body><header><h1>{escape(title)}</h1>",
            f'<p class="quiet">Training report of {escape(", ".join(run.name for run in runs))}</p>',
            "</header><main>",
            _problems(problems),
            _section("In short", _headline(runs)),
            _section("How it went", _charts(chart_tags(curves, Place.RESULT, Place.CURVE), runs)),
            _section("Layers that stand out", layers(runs)),
            _section("Workers that stand out", workers(runs)),
            _section("Settings", _settings(runs)),
            _section("More", _charts(chart_tags(curves, Place.MORE), runs)),
            _section("Logged once", comparison(runs, logged_once)),
            "</main></body></html>\n",
        ]
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def _problems(problems: list[str]) -> str:
    if not problems:
        return ""
    items = "".join(f"<li>{escape(problem)}</li>" for problem in problems)
    return f'<div class="problems"><strong>Not everything is here</strong><ul>{items}</ul></div>'


def _headline(runs: list[Run]) -> str:
    if len(runs) > 1:
        return comparison(runs, figures)
    cards = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in figures(runs[0]).items()
    )
    return f"<p>{escape(in_a_sentence(runs[0]))}</p><dl>{cards}</dl>"


def _charts(tags: list[str], runs: list[Run]) -> str:
    charts = []
    for tag in tags:
        lines = [
            Line(run.name, run.scalars[tag], style) for style, run in enumerate(runs) if tag in run.scalars
        ]
        reading = reading_of(tag)
        charts.append(figure(reading.title, tag, reading.sentence, lines, legend=len(runs) > 1))
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def _settings(runs: list[Run]) -> str:
    """Hyper-parameters, what the monitor says of the run, and other texts that were logged."""

    def settings(run: Run) -> dict[str, str]:
        return dict(sorted((run.settings | _rows(run.texts.get(_PANEL, ""))).items()))

    texts = [
        f"<h3>{escape(f'{run.name}: {tag}')}</h3><pre>{escape(text)}</pre>"
        for run in runs
        for tag, text in sorted(run.texts.items())
        if tag != _PANEL or not _rows(text)
    ]
    return comparison(runs, settings) + "".join(texts)


def _rows(text: str) -> dict[str, str]:
    """What stands in a table of two columns in Markdown, below its heading."""
    lines = [line.strip().strip("|").split("|", 1) for line in text.splitlines()]
    return {cells[0].strip(): cells[1].strip() for cells in lines[2:] if len(cells) == 2}
