"""TensorBoard pages that read themselves: a layout, a text panel, hyper-parameters, heat maps."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.optim import Optimizer

from lightning_signvr.voting import MajorityVote

log = logging.getLogger(__name__)

LAYOUT: Mapping[str, Mapping[str, list[Any]]] = {
    "Sign vote": {
        "Agreement": ["Multiline", [r"^sign_vote/(agreement|flip_rate|tie_rate|abstain_rate)$"]],
        "Communication: bits per parameter and step": ["Multiline", [r"^comm/bits_per_parameter$"]],
        "Gradient norm": ["Multiline", [r"^grad_norm/(local|estimate)$"]],
        "Variance reduction": ["Multiline", [r"^variance_reduction/.*"]],
    },
    "Who and where": {
        "Agreement of each worker with the outcome": ["Multiline", [r"^sign_vote/worker_agreement/.*"]],
        "Agreement within each layer": ["Multiline", [r"^sign_vote/agreement/.*"]],
    },
    "Time": {
        "Seconds of a vote, by phase": ["Multiline", [r"^comm/seconds.*"]],
        "Share of a step": ["Multiline", [r"^comm/share_of_step$"]],
    },
}
"""Charts of TensorBoard's *custom scalars* page; tags are regular expressions."""


def writers_of(trainer: Trainer) -> list[Any]:
    """The SummaryWriters of a trainer's TensorBoard loggers, on rank 0; none on the others."""
    if not trainer.is_global_zero:
        return []
    return [getattr(logger, "experiment") for logger in trainer.loggers if is_tensorboard(logger)]  # noqa: B009


def is_tensorboard(logger: Any) -> bool:
    """Whether a Lightning logger writes for TensorBoard; call it on rank 0."""
    return hasattr(getattr(logger, "experiment", None), "add_custom_scalars")


def settings_of(
    trainer: Trainer, voters: Sequence[tuple[Optimizer, MajorityVote]]
) -> dict[str, str | int | float]:
    """What ran, for people who were not there."""
    settings: dict[str, str | int | float] = {
        "strategy": type(trainer.strategy).__name__,
        "workers": trainer.world_size,
        "precision": str(trainer.precision),
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "gradient_clip_val": trainer.gradient_clip_val or 0.0,
        "lightning_signvr": _version("lightning-signvr"),
        "torch": str(torch.__version__),
        "lightning": _version("lightning"),
        "python": platform.python_version(),
    }
    for number, (optimizer, vote) in enumerate(voters):
        end = f"/{number}" if len(voters) > 1 else ""
        group = optimizer.param_groups[0]
        plain = {key: value for key, value in group.items() if isinstance(value, (str, int, float, bool))}
        for key in ("step", "initial_lr"):
            plain.pop(key, None)
        settings[f"optimizer{end}"] = type(optimizer).__name__
        settings.update({f"{key}{end}": value for key, value in plain.items()})
        parameters = sum(p.numel() for g in optimizer.param_groups for p in g["params"] if p.requires_grad)
        settings[f"parameters{end}"] = parameters
        settings[f"vote{end}"] = repr(vote)
        settings[f"topology{end}"] = topology(vote)
    return settings


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"  # run from its sources


def topology(vote: MajorityVote) -> str:
    """How the votes travel."""
    workers = vote.workers
    if workers == 1:
        return "one worker, nothing is sent"
    if vote.voters == "node":
        return f"the nodes of {workers} workers"
    return f"{workers} owners, all_to_all and all_gather"


def as_table(settings: Mapping[str, Any]) -> str:
    """The settings in Markdown.

    Example:
        >>> print(as_table({"workers": 2}))
        | setting | value |
        |---|---|
        | workers | 2 |
    """
    rows = [f"| {key} | {value} |" for key, value in settings.items()]
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def add_hyperparameters(
    writer: Any, settings: Mapping[str, str | int | float], metrics: Mapping[str, float]
) -> None:
    """A row of TensorBoard's *hparams* page; the metrics' values are those that the run logged last."""
    from torch.utils.tensorboard.summary import hparams  # slow to import

    for summary in hparams(dict(settings), dict(metrics)):  # type: ignore[no-untyped-call]
        writer._get_file_writer().add_summary(summary)


class HeatMap:
    """Rows of named numbers over the steps, drawn at the end."""

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.clear()

    def clear(self) -> None:
        self._steps: list[int] = []
        self._rows: list[dict[str, float]] = []

    def add(self, step: int, row: dict[str, float]) -> None:
        """Add a step; past a few hundred of them, every other one is dropped."""
        self._steps.append(step)
        self._rows.append(row)
        if len(self._steps) > 512:
            self._steps, self._rows = self._steps[::2], self._rows[::2]

    def write(self, writer: Any) -> None:
        """Draw what there is; says so once where matplotlib is missing."""
        if len(self._steps) < 2:
            return
        if find_spec("matplotlib") is None:
            log.info("no heat map of the layers: it needs matplotlib (pip install lightning-signvr[plots])")
            return
        from matplotlib.figure import Figure  # optional, and slow to import

        names = list(self._rows[-1])
        figure = Figure(figsize=(8, 1.5 + 0.25 * len(names)), layout="constrained")
        axes = figure.add_subplot()
        numbers = [[row.get(name, float("nan")) for row in self._rows] for name in names]
        extent = (self._steps[0], self._steps[-1], len(names) - 0.5, -0.5)
        image = axes.imshow(numbers, aspect="auto", vmin=0, vmax=1, extent=extent, interpolation="nearest")
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("step")
        figure.colorbar(image, label="agreement")
        writer.add_figure(self.tag, figure, global_step=self._steps[-1])
