"""Checkpoint folders under the strategies, once for all namespaces."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from lightning_signvr.acting_together import Together
from lightning_signvr.checkpoint_folders import CheckpointFolder, write
from lightning_signvr.connecting import Connection
from lightning_signvr.optimizers import SignOptimizer
from lightning_signvr.optimizers.resizing import OnResize
from lightning_signvr.sharded_checkpoints import IN_RANK_FILES, complete, take_state
from lightning_signvr.strategies.checkpoint_io import WholeCheckpoints

StateDictType = Literal["full", "sharded"]
"""One file with all workers' states, or a folder with a file of each."""


class ShardedCheckpoints(WholeCheckpoints):
    """For strategies: checkpoints are files or folders, and both are read."""

    is_global_zero: bool
    _on_resize: OnResize
    _folder: CheckpointFolder | None = None
    _state_dict_type: StateDictType = "full"

    def _check_checkpoint_io(self) -> None:
        chosen = self._checkpoint_io
        if self._state_dict_type == "full" or chosen is None or type(chosen) is self.default_checkpoint_io:
            return
        raise ValueError(
            f'checkpoint_io must be left out with state_dict_type="sharded", got {type(chosen).__name__}: '
            'each worker writes its own file; or use state_dict_type="full"'
        )

    # -- saving -----------------------------------------------------------------------------------

    def _state_to_save(self, connection: Connection, state: dict[str, Any]) -> dict[str, Any]:
        """An optimizer's state of all workers (a collective), or this worker's for a file of its own."""
        if self._state_dict_type == "sharded" and isinstance(connection.optimizer, SignOptimizer):
            return state
        return connection.complete(state, self.root_device)

    def _write_folder(
        self,
        path: Any,
        contents: Mapping[str, Any],
        states: Mapping[str, tuple[Connection, dict[str, Any]]],
        storage_options: Any,
    ) -> None:
        """Write ``contents``, and from the optimizers' ``states`` in it what each worker has of its own."""
        if storage_options is not None or "://" in str(path):
            raise ValueError(
                f'state_dict_type="sharded" writes to a disk that all workers share, got {path} with '
                f'storage_options={storage_options!r}: use state_dict_type="full"'
            )
        own = {}
        for name, (connection, state) in states.items():
            if isinstance(connection.optimizer, SignOptimizer) and "state" in state:
                own[name] = take_state(state, name)
        write(path, contents, own, Together(device=self.root_device))

    @contextmanager
    def _room_for_a_file(self, path: Any) -> Iterator[None]:
        """Where a checkpoint folder has the name that the block writes a file to: it is kept until then.

        If the program is killed in the block, the folder stays under the name ``.replaced-*``.
        """
        aside = None
        with Together(device=self.root_device).or_nobody(f"saving {path}"):
            path = Path(path)
            if self.is_global_zero and path.is_dir() and not path.is_symlink():
                CheckpointFolder(path)  # raises where it is another folder
                aside = path.with_name(f".replaced-{path.stem}")
                shutil.rmtree(aside, ignore_errors=True)
                os.rename(path, aside)
        try:
            yield
        except BaseException:
            if aside is not None:
                os.rename(aside, path)
            raise
        if aside is not None:
            shutil.rmtree(aside)

    # -- loading ----------------------------------------------------------------------------------

    def _file_to_read(self, path: Any) -> Any:
        """``path``, or of a folder the file that the workers share."""
        self._folder = CheckpointFolder(path) if Path(path).is_dir() else None
        return path if self._folder is None else self._folder.file(None)

    def _own_states(self, connections: list[Connection], states: list[Any]) -> list[dict[str, Any]]:
        """This worker's parts of optimizers' states in a checkpoint; a collective."""
        in_files = [IN_RANK_FILES in state for state in states]
        if any(in_files):
            if self._folder is None:
                raise RuntimeError(
                    "the checkpoint is a part of a folder, without the workers' optimizer states: name the "
                    "folder itself"
                )
            states = self._completed(states)
        return [
            state if in_file else connection.own(state)
            for connection, state, in_file in zip(connections, states, in_files, strict=True)
        ]

    def _completed(self, checkpoint: Any) -> Any:
        """A checkpoint, or a part of it, with this worker's states where they are in a file of its own."""
        if self._folder is None:
            return checkpoint
        return complete(checkpoint, self._folder, Together(device=self.root_device), self._on_resize)
