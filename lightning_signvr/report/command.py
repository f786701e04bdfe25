"""``lightning-signvr report``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lightning_signvr.report.page import write_report
from lightning_signvr.report.runs import ReportError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    parser.add_argument(
        "run_dir", metavar="RUN_DIR", type=Path, help="folder of a run's event files, or of several runs"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("report.html"), help="file to write (default: report.html)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the report.

    Returns:
        Exit status: 0 if a report was written, of all or of what could be read; 2 if not.
    """
    try:
        problems = write_report(arguments.run_dir, arguments.out)
    except ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    print(f"Wrote {arguments.out}, {arguments.out.stat().st_size / 1000:,.0f} kB.")
    return 0
