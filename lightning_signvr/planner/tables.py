"""Plain text tables."""

from __future__ import annotations

from collections.abc import Sequence


def as_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side; the first to the left, the others to the right.

    Example:
        >>> print(as_table(["name", "step"], [["fp32", "3.9 s"], ["vote", "143 ms"]]))
        name    step
        fp32   3.9 s
        vote  143 ms
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in [header, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[0] = row[0].ljust(widths[0])
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
