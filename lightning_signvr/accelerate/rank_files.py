"""Each worker's own optimizer states beside an Accelerate checkpoint, in a file per rank.

Accelerate writes the optimizer state of the main process alone (its random numbers too go to a file per
rank): every worker would resume with rank 0's estimator, and nothing would fail.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

FORMAT = 1


def path_of(folder: str | Path, rank: int) -> Path:
    """Where a rank's states are."""
    return Path(folder) / f"sign_vote_{rank}.bin"


def write(folder: str | Path, rank: int, workers: int, optimizers: list[dict[str, Any]]) -> None:
    """Keep this rank's states; ``torch.load(weights_only=True)`` reads them."""
    contents = {"format": FORMAT, "world_size": workers, "optimizers": optimizers}
    torch.save(contents, path_of(folder, rank))


def read(folder: str | Path, rank: int, workers: int, count: int) -> list[dict[str, Any]]:
    """This rank's states, of ``count`` optimizers.

    Raises:
        RuntimeError: they are missing, of another number of workers or optimizers, or of a newer format.
    """
    first, own = path_of(folder, 0), path_of(folder, rank)
    if not first.exists() and not own.exists():
        raise RuntimeError(
            f"{folder} was not saved under sign_vote ({first.name} is missing), and each worker needs an "
            "optimizer state of its own: load the checkpoint's weights into the model before "
            "accelerator.prepare (under DDP their names begin with 'module.'), and start the optimizer anew"
        )
    saved = torch.load(own if own.exists() else first, map_location="cpu", weights_only=True)
    if saved["format"] > FORMAT:
        raise RuntimeError(
            f"{own} has format {saved['format']}, this version reads up to {FORMAT}: update lightning-signvr"
        )
    there = saved["world_size"]
    if there != workers:
        raise RuntimeError(
            f"{folder} holds the optimizer states of {there} worker(s), and this run has {workers}: resume "
            f"with {there}, or start the optimizer anew from the checkpoint's weights"
        )
    if not own.exists():
        raise RuntimeError(
            f"{own} is missing: copy the files sign_vote_*.bin of all machines, each worker needs its own"
        )
    states: list[dict[str, Any]] = saved["optimizers"]
    if len(states) != count:
        raise RuntimeError(f"{folder} holds the states of {len(states)} optimizer(s), this run has {count}")
    return states
