"""For the API reference: docstrings as Markdown.

The package's docstrings have Google's sections, and inside them the cross-references and tables that
Python's own help() shows well. The site wants Markdown.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|attr):`(~?)([\w.]+)`")
TABLE = re.compile(r"^( *)(=+(?: +=+)+)\n(.*?)\n\1\2\n(.*?)\n\1\2$", re.MULTILINE | re.DOTALL)
SHARED = re.compile(r"^( +)(\w+(?:,\s+\w+)+): (.*\n(?:\1 +.*\n|\n(?=\1 ))*)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrite the docstring of each object once the whole package is known."""

    def on_object(self, *, obj: griffe.Object, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value, obj)


def as_markdown(text: str, obj: griffe.Object) -> str:
    text = re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE)
    text = re.sub(r"  # doctest: \+SKIP$", "", text, flags=re.MULTILINE)
    text = TABLE.sub(lambda found: table(*found.groups()), text)
    text = SHARED.sub(lambda found: each_by_itself(*found.groups()), text + "\n").rstrip("\n")
    return ROLE.sub(lambda found: link(*found.groups(), obj), text)


def table(indent: str, rule: str, head: str, body: str) -> str:
    """Columns between ``|`` instead of under ``===``; an empty first cell continues a row."""
    columns = [slice(len(indent) + bar.start(), len(indent) + bar.end()) for bar in re.finditer("=+", rule)]
    columns[-1] = slice(columns[-1].start, None)
    rows: list[list[str]] = []
    for line in [*head.splitlines(), *body.splitlines()]:
        cells = [line[column].strip() for column in columns]
        if cells[0] or not rows:
            rows.append(cells)
        else:
            rows[-1] = [f"{before} {more}".strip() for before, more in zip(rows[-1], cells, strict=True)]
    lines = [" | ".join(row) for row in rows]
    lines.insert(1, " | ".join("---" for _ in columns))
    return "\n".join(f"{indent}| {line} |" for line in lines)


def each_by_itself(indent: str, names: str, description: str) -> str:
    """``a, b: text`` as ``a: text`` and ``b: text``, so that each gets its own type and default."""
    return "".join(f"{indent}{name}: {description}" for name in re.split(r",\s+", names))


def link(shortened: str, target: str, obj: griffe.Object) -> str:
    """A reference that is a link where its target is on the site, and a word in code where it is not."""
    shown = target.rsplit(".", 1)[-1] if shortened else target.lstrip(".")
    first, *rest = target.lstrip(".").split(".")
    try:
        path = ".".join([obj.resolve(first), *rest])
    except griffe.NameResolutionError:
        path = target
    return f'<autoref optional identifier="{path}"><code>{shown}</code></autoref>'
