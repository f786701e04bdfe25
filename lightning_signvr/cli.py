"""The program ``lightning-signvr``: one subcommand per package that has a ``command`` module."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "plan": ("planner", "predict step times, and say whether a sign vote is worth it"),
    "report": ("report", "make one HTML file of a run's event files"),
}
"""Package and purpose. Its module ``command`` offers ``add_arguments(parser)`` and ``run(arguments)``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        arguments: of the command line; None for those of this process.

    Returns:
        Exit status: 0, or 2 where something that was given cannot be used.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="lightning-signvr", description="Sign votes for PyTorch Lightning.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (package, purpose) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=purpose, description=f"{purpose.capitalize()}.")
        if given[:1] == [name]:  # import what is run, and nothing else
            command = importlib.import_module(f"lightning_signvr.{package}.command")
            command.add_arguments(subparser)
            subparser.set_defaults(run=command.run)
    parsed = parser.parse_args(given)
    status: int = parsed.run(parsed)
    return status


if __name__ == "__main__":
    sys.exit(main())
