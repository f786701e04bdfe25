"""A checkpoint folder in which each worker writes its own optimizer state: nothing is gathered.

For plain PyTorch loops. Under the strategies for Lightning and Fabric ``state_dict_type="sharded"`` does it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lightning_signvr.acting_together import Together
from lightning_signvr.checkpoint_files import save as save_file
from lightning_signvr.checkpoint_folders import CheckpointFolder, write
from lightning_signvr.optimizers.rank_states import FORMAT, KEY, renewed, say_resized
from lightning_signvr.optimizers.resizing import OnResize, State, check_on_resize, merged
from lightning_signvr.optimizers.state_trees import checksum

IN_RANK_FILES = "in_rank_files"
"""Key in an optimizer's state dict whose ``state`` each worker has written for itself; the name there."""


def save(
    path: str | Path,
    contents: Mapping[str, Any],
    optimizers: Mapping[str, Mapping[str, Any]],
    group: dist.ProcessGroup | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Write a checkpoint folder; a collective of all workers.

    A crash of any worker leaves what was at ``path`` before, see :func:`.checkpoint_folders.write`.

    Args:
        path: of the folder, the same on all workers, on a disk that they share.
        contents: the model and what else is the same on all workers; rank 0's is written.
        optimizers: state dicts of optimizers, each worker's own, by names that are not in ``contents``.
        group: the workers; None for all.
        device: where the group's backend can exchange tensors.

    Raises:
        OSError: it could not be written; what was there before still is.
        RuntimeError: that happened to another worker.
        ValueError: a name is in ``contents`` and in ``optimizers``.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from lightning_signvr import Signum
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = Signum(model.parameters(), lr=0.5)
        >>> with TemporaryDirectory() as parent:
        ...     optimizers = {"optimizer": optimizer.state_dict()}
        ...     save(f"{parent}/last", {"model": model.state_dict(), "step": 7}, optimizers)
        ...     checkpoint = load(f"{parent}/last")
        >>> optimizer.load_state_dict(checkpoint["optimizer"])
        >>> list(checkpoint), checkpoint["step"]
        (['model', 'step', 'optimizer'], 7)
    """
    both = sorted(contents.keys() & optimizers.keys())
    if both:
        raise ValueError(f"contents and optimizers must have different names, got {both} in both")
    named = {name: dict(state_dict) for name, state_dict in optimizers.items()}
    own = {name: take_state(state_dict, name) for name, state_dict in named.items()}
    write(path, {**contents, **named}, own, Together(group, device))


def load(
    path: str | Path,
    on_resize: OnResize = "error",
    group: dist.ProcessGroup | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """What :func:`save` or a strategy wrote, with this worker's optimizer states; a collective.

    Args:
        path: of the folder.
        on_resize: what to do where it is of another number of workers, as in
            :func:`~lightning_signvr.optimizers.rank_states.resized`.
        group: the workers; None for all.
        device: where the group's backend can exchange tensors.

    Returns:
        ``contents`` and the optimizers' state dicts by their names, for ``load_state_dict``; on the CPU.

    Raises:
        ValueError: an unknown ``on_resize``.
        RuntimeError: it is of another number of workers and ``on_resize="error"``, a file is missing or
            damaged, also if another worker finds it so, or the format is newer.
    """
    check_on_resize(on_resize)
    together = Together(group, device)
    with together.or_nobody(f"loading {path}"):
        folder = CheckpointFolder(path)
        checkpoint: dict[str, Any] = folder.read(None)
    complete(checkpoint, folder, together, on_resize)
    return checkpoint


def consolidate(folder: str | Path, path: str | Path) -> None:
    """Make one portable file of a checkpoint folder; in one process, which needs no process group.

    The file is what ``state_dict_type="full"`` would have written, or in a plain loop
    :func:`~lightning_signvr.optimizers.rank_states.with_rank_states`. ``torch.load(weights_only=True)`` and
    ``Model.load_from_checkpoint`` read it. Tensors go from disk to disk, few at a time in memory.

    Args:
        folder: that :func:`save` or a strategy wrote.
        path: of the new file.

    Raises:
        OSError: the file could not be written.
        RuntimeError: a file of the folder is missing or damaged, or the format is newer.
    """
    source = CheckpointFolder(folder)
    checkpoint = source.read(None, mmap=True)
    parts = [source.read(rank, mmap=True) for rank in range(source.workers)]
    for state_dict in list(_incomplete(checkpoint)):
        name = state_dict.pop(IN_RANK_FILES)
        states = [part[name] for part in parts]
        state_dict["state"] = states[0]
        state_dict[KEY] = {
            "format": FORMAT,
            "world_size": source.workers,
            "states": states,
            "checksums": [checksum(state) for state in states],
        }
    save_file(checkpoint, path)


def take_state(state_dict: dict[str, Any], name: str) -> State:
    """Take a worker's own state out of an optimizer's ``state_dict``, of which all workers share the rest."""
    state: State = state_dict.pop("state")
    state_dict[IN_RANK_FILES] = name
    return state


def complete(checkpoint: Any, folder: CheckpointFolder, together: Together, on_resize: OnResize) -> Any:
    """Put this worker's optimizer states into what ``folder`` holds for all; a collective if it has any.

    Args:
        checkpoint: what all workers share, or a part of it; changed.
        folder: where it is from.
        together: the workers.
        on_resize: as for :func:`load`.

    Returns:
        The ``checkpoint`` that was passed.

    Raises:
        RuntimeError: as :func:`load`.
    """
    incomplete = list(_incomplete(checkpoint))
    if not incomplete:
        return checkpoint
    with together.or_nobody(f"loading {folder.path}"):
        states = _read_states(folder, together.rank, together.workers, on_resize)
    for state_dict in incomplete:
        name = state_dict.pop(IN_RANK_FILES)
        state_dict["state"] = {} if states is None else states[name]
        if states is None:
            state_dict["param_groups"] = [renewed(group) for group in state_dict["param_groups"]]
    return checkpoint


def _read_states(
    folder: CheckpointFolder, rank: int, workers: int, on_resize: OnResize
) -> dict[str, State] | None:
    """This worker's states by name; None to begin with none."""
    there = folder.workers
    if there == workers:
        states: dict[str, State] = folder.read(rank)
        return states
    if on_resize == "error":
        raise RuntimeError(
            f"{folder.path} holds the optimizer states of {there} worker(s), and this run has {workers}: "
            f'resume with {there}, or choose what becomes of their states by on_resize="mean" or "reset" '
            "(SignVoteStrategy(on_resize=...), in plain PyTorch load(..., on_resize=...)), or start the "
            "optimizer anew from the weights"
        )
    say_resized(there, workers, on_resize)
    if on_resize == "reset":
        return None
    parts = [folder.read(other, mmap=True) for other in range(there)]  # on the disk, not in memory
    return {name: merged([part[name] for part in parts]) for name in parts[0]}


def _incomplete(tree: Any) -> Iterator[dict[str, Any]]:
    """The state dicts in a checkpoint that :func:`complete` is for."""
    if isinstance(tree, dict) and IN_RANK_FILES in tree:
        yield tree
    elif isinstance(tree, (dict, list)):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _incomplete(value)
