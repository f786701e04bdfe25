"""Each worker's own optimizer states beside an Accelerate checkpoint, in a file per rank.

Accelerate writes the optimizer state of the main process alone (its random numbers too go to a file per
rank): every worker would resume with rank 0's estimator, and nothing would fail.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_signvr.checkpoint_files import load, save
from lightning_signvr.optimizers.rank_states import renewed, say_resized
from lightning_signvr.optimizers.resizing import OnResize, merged

FORMAT = 1


def path_of(folder: str | Path, rank: int) -> Path:
    """Where a rank's states are."""
    return Path(folder) / f"sign_vote_{rank}.bin"


def write(folder: str | Path, rank: int, workers: int, optimizers: list[dict[str, Any]]) -> None:
    """Keep this rank's states; ``torch.load(weights_only=True)`` reads them."""
    contents = {"format": FORMAT, "world_size": workers, "optimizers": optimizers}
    save(contents, path_of(folder, rank))


def read(
    folder: str | Path, rank: int, workers: int, count: int, on_resize: OnResize = "error"
) -> list[dict[str, Any]]:
    """This rank's states, of ``count`` optimizers.

    Raises:
        RuntimeError: they are missing, damaged, of another number of workers (with ``on_resize="error"``) or
            of optimizers, or of a newer format.
    """
    first, own = path_of(folder, 0), path_of(folder, rank)
    if not first.exists() and not own.exists():
        raise RuntimeError(
            f"{folder} was not saved under sign_vote ({first.name} is missing), and each worker needs an "
            "optimizer state of its own: start the optimizer anew, after you have loaded the checkpoint's "
            "weights into the model (under DDP their names begin with 'module.')"
        )
    saved = _load(own if own.exists() else first)
    there = saved["world_size"]
    if there != workers and on_resize == "error":
        raise RuntimeError(
            f"{folder} holds the optimizer states of {there} worker(s), and this run has {workers}: resume "
            f"with {there}, or choose what becomes of their states by sign_vote(..., on_resize=...): "
            '"mean" or "reset"; or start the optimizer anew from the weights'
        )
    if there != workers:
        states = _resized(folder, workers, there, on_resize)
    elif not own.exists():
        raise _missing(own)
    else:
        states = saved["optimizers"]
    if len(states) != count:
        raise RuntimeError(f"{folder} holds the states of {len(states)} optimizer(s), this run has {count}")
    return states


def _load(path: Path) -> dict[str, Any]:
    saved: dict[str, Any] = load(path)
    if saved["format"] > FORMAT:
        raise RuntimeError(
            f"{path} has format {saved['format']}, this version reads up to {FORMAT}: update lightning-signvr"
        )
    return saved


def _missing(path: Path) -> RuntimeError:
    return RuntimeError(
        f"{path} is missing: copy the files sign_vote_*.bin of all machines, each worker needs its own"
    )


def _resized(folder: str | Path, workers: int, there: int, on_resize: OnResize) -> list[dict[str, Any]]:
    paths = [path_of(folder, rank) for rank in range(there if on_resize == "mean" else 1)]
    for path in paths:
        if not path.exists():
            raise _missing(path)
    saved = [_load(path)["optimizers"] for path in paths]
    say_resized(there, workers, on_resize)
    return [_of_all(states, on_resize) for states in zip(*saved, strict=True)]


def _of_all(states: tuple[dict[str, Any], ...], on_resize: OnResize) -> dict[str, Any]:
    """What each new worker starts with, of one optimizer."""
    first = states[0]
    if "param_groups" not in first:  # another optimizer than ours: the same on all workers
        return first
    if on_resize == "mean":
        return {**first, "state": merged([state["state"] for state in states])}
    return {"state": {}, "param_groups": [renewed(group) for group in first["param_groups"]]}
