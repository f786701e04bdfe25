"""Figures of a real network and machine, as a JSON file."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning_signvr.planner.figures import Costs, Link

FORMAT = "lightning-signvr measured 1"


@dataclass(frozen=True)
class Measured:
    """What ``lightning_signvr.planner.measure`` found.

    Attributes:
        link: between the workers.
        costs: of a worker.
        overlap: see :class:`~lightning_signvr.planner.figures.Cluster`.
        workers: that took part.
        device: type of the workers' device.
    """

    link: Link
    costs: Costs
    overlap: float
    workers: int
    device: str

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Measured:
        """The figures in the text of a file.

        Raises:
            ValueError: it is not such a file, or a figure in it cannot be.

        Example:
            >>> here = Measured(Link(1e9, 1e-4, 5e8), Costs(), 0.5, 2, "cpu")
            >>> Measured.from_json(here.to_json()) == here
            True
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"it is not JSON: {error}") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(
                f"it is not of the format {FORMAT!r}: write it with lightning_signvr.planner.measure --out"
            )
        try:
            figures = cls(
                Link(**_numbers(data["link"])),
                Costs(**_numbers(data["costs"])),
                _number("overlap", data["overlap"]),
                data["workers"],
                data["device"],
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"a figure is missing or unknown: {error}") from error
        if figures.overlap > 1:
            raise ValueError(f"overlap must be at most 1, got {figures.overlap}")
        if not (figures.link.bytes_per_second > 0 and figures.link.reduce_rate > 0):
            raise ValueError("the speed of the link must be above 0")
        if not isinstance(figures.workers, int) or figures.workers < 1:
            raise ValueError(f"workers must be a whole number above 0, got {figures.workers!r}")
        return figures


def load_measured(path: Path) -> Measured:
    """The figures in a file.

    Raises:
        ValueError: it cannot be read, or see :meth:`Measured.from_json`; with the path.
    """
    try:
        return Measured.from_json(path.read_text())
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path} cannot be used: {error}") from error


def _numbers(data: dict[str, Any]) -> dict[str, float]:
    return {name: _number(name, value) for name, value in data.items()}


def _number(name: str, value: object) -> float:
    if isinstance(value, (int, float)) and math.isfinite(value) and value >= 0:
        return float(value)
    raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
