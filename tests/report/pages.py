"""Event files to make reports from, and a reader of the pages made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

VOID = {"meta"}


def write_events(folder: Path, scalars: Mapping[str, Sequence[tuple[int, float]]], at: float = 1e9) -> Path:
    """A new event file in the folder, whose events come a second after each other."""
    writer = SummaryWriter(str(folder))
    for tag, points in scalars.items():
        for second, (step, value) in enumerate(points):
            writer.add_scalar(tag, value, step, walltime=at + second)
    writer.close()
    return newest(folder)


def newest(folder: Path) -> Path:
    """The event file of a folder that was made last."""
    return max(folder.glob("*tfevents*"), key=lambda path: path.stat().st_mtime_ns)


class Page(HTMLParser):
    """Elements and texts of a page, which must be well-formed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self._open[-1:] != ["style"]:
            self.texts.append(data.strip())

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        """Attributes of the elements with this tag and these attributes (``class`` as ``class_``)."""
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [own for name, own in self.elements if name == tag and wanted.items() <= own.items()]
