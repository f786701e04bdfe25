"""How the strategies write and read checkpoint files, once for all namespaces."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from lightning_signvr.acting_together import Together
from lightning_signvr.checkpoint_files import check_whole, named_if_unreadable, save

if TYPE_CHECKING:
    import torch
    from lightning.fabric.plugins import CheckpointIO
    from lightning.fabric.plugins.io import TorchCheckpointIO as _Base
else:
    _Base = object


class WholeCheckpointMixin(_Base):
    """Lightning's ``TorchCheckpointIO``, but files are whole or not there, and refused when damaged.

    Lightning writes to the folder for temporary files and moves that over the last checkpoint. From another
    disk that is a copy: a crash leaves neither. And it packs the checkpoint in memory first, twice.

    The format is the same: Lightning and ``torch.load`` read it without this library. What goes to another
    place than a local disk (``s3://...``) is written as Lightning does.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save(checkpoint, path)

    @override
    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if "://" in str(path) or not Path(path).exists():
            return super().load_checkpoint(path, *args, **kwargs)
        with open(path, "rb") as file:
            check_whole(file, path)
        with named_if_unreadable(path):
            return super().load_checkpoint(path, *args, **kwargs)

    @override
    def remove_checkpoint(self, path: Any) -> None:
        if os.path.islink(path):  # to a folder: not every version of fsspec removes that
            os.unlink(path)
        else:
            super().remove_checkpoint(path)


class WholeCheckpoints:
    """For strategies: what a user did not choose otherwise is written by ``default_checkpoint_io``.

    Where rank 0 cannot write (a full disk), all workers raise: none waits for it.
    """

    default_checkpoint_io: type[CheckpointIO]
    root_device: torch.device
    _checkpoint_io: Any

    @property
    def checkpoint_io(self) -> CheckpointIO:
        """What writes and reads files."""
        if self._checkpoint_io is None:
            self._checkpoint_io = self.default_checkpoint_io()
        elif hasattr(
            self._checkpoint_io, "checkpoint_io"
        ):  # a wrapper (AsyncCheckpointIO); so does Lightning
            self._checkpoint_io.checkpoint_io = self.default_checkpoint_io()
        chosen: CheckpointIO = self._checkpoint_io
        return chosen

    @checkpoint_io.setter
    def checkpoint_io(self, chosen: CheckpointIO) -> None:
        self._checkpoint_io = chosen

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """As the strategy; a collective."""
        with Together(device=self.root_device).or_nobody("saving a checkpoint"):
            super().save_checkpoint(*args, **kwargs)  # type: ignore[misc]
