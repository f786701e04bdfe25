"""Checkpoints that are folders: a file of each worker, one that they share, and an index of them all.

``index.json`` names the files that belong together, with the size and the CRC-32 of each, and has a CRC-32 of
its own. It is written last and replaced in one operation, so that a folder is a checkpoint from then on.
The files are of ``torch.save`` and are read by ``weights_only=True``.

This is not the format of ``torch.distributed.checkpoint``, which cannot be read safely: its ``.metadata`` is
a pickle, entries that are no tensors are unpickled without ``weights_only``, and its workers send each other
pickles while they save and load. And its files have no checksums.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from lightning_signvr.acting_together import Together
from lightning_signvr.checkpoint_files import named_if_unreadable, save, sync_folder, unfinished_name

INDEX = "index.json"
FORMAT = 1

_OURS = re.compile(r"(rank_\d+|shared)-[0-9a-f]{16}\.pt|\.unfinished-.*")
"""Names in a folder, beside its index."""


class CheckpointFolder:
    """A checkpoint that :func:`write` has written; nothing but its index is read before it is asked for.

    Args:
        path: of the folder.

    Attributes:
        path: the same.
        workers: how many have written it.

    Raises:
        RuntimeError: it has no index, a damaged one, or one of a newer format.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as parent:
        ...     write(f"{parent}/checkpoint", {"step": 7}, {"momentum": 0.5})
        ...     folder = CheckpointFolder(f"{parent}/checkpoint")
        ...     folder.workers, folder.read(0)
        (1, {'momentum': 0.5})
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            document = json.loads((self.path / INDEX).read_bytes())
            index = document["index"]
            if zlib.crc32(_text(index)) != document["crc32"]:
                raise ValueError("its checksum differs")
            form = index["format"]
            if form == FORMAT:
                self.workers, self._save, self._files = index["workers"], index["save"], index["files"]
        except FileNotFoundError as error:
            raise RuntimeError(
                f"{self.path} is a folder without {INDEX}: no checkpoint, or one that was not copied or "
                "removed to the end; use an earlier one, or copy it anew from where it is whole"
            ) from error
        except (ValueError, KeyError, TypeError) as error:  # json's errors are ValueErrors
            raise _damaged(self.path / INDEX, error) from error
        if form != FORMAT:
            raise RuntimeError(
                f"{self.path} has format {form}, this version reads {FORMAT}: update lightning-signvr"
            )

    def file(self, rank: int | None) -> Path:
        """The file of a rank, or the one that they share (None), after it was compared with the index.

        Raises:
            RuntimeError: it is missing or damaged.
        """
        name = _name(rank, self._save)
        path = self.path / name
        try:
            size, crc = fingerprint(path)
        except OSError as error:
            raise _damaged(path, error) from error
        if [size, crc] != self._files[name]:
            wanted = self._files[name][0]
            reason = "its checksum differs" if size == wanted else f"{size:,} of {wanted:,} bytes"
            raise _damaged(path, reason)
        return path

    def read(self, rank: int | None, mmap: bool = False) -> Any:
        """What :meth:`file` holds, on the CPU; nothing but tensors and plain values.

        Args:
            rank: whose; None for what they share.
            mmap: whether tensors stay on the disk until they are looked at.

        Raises:
            RuntimeError: the file is missing or damaged.
            pickle.UnpicklingError: it holds other objects.
        """
        path = self.file(rank)
        with named_if_unreadable(path):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def write(path: str | Path, shared: Any, own: Any, together: Together | None = None) -> None:
    """Write a checkpoint folder; a collective of all workers.

    A crash of any worker at any byte leaves what was at ``path`` before. A new folder gets its name when all
    of it is on the disk; until then it is ``.unfinished-*`` beside it, which may be deleted after a crash,
    and the next save under the name does. Into a checkpoint folder that is there the new files are written
    beside the old ones, which are removed after the index has been replaced. Where a file or a link has the
    name, there is an instant in which it is ``.replaced-file-*`` and the folder does not have its name yet.

    Args:
        path: of the folder, the same on all workers, on a disk that they share.
        shared: what ``torch.save`` takes; rank 0's is written.
        own: the same, written by each worker for itself.
        together: the workers; None for this process alone.

    Raises:
        OSError: a file could not be written, the folder is not on a shared disk, or there is a folder that is
            no checkpoint.
        RuntimeError: one of these happened to another worker.
    """
    path = Path(path)
    together = Together() if together is None else together
    first = together.rank == 0
    # rank 0 says which save this is, so that no file has the name of an earlier one, and where it is written
    # to: its own view of the disk counts
    is_there = (path / INDEX).is_file() and not path.is_symlink()
    number, in_place = together.exchange(secrets.randbits(62), int(is_there))[0]
    save_name = f"{number:016x}"
    target = path if in_place else path.with_name(f"{unfinished_name(path)}-{save_name}")
    try:
        with together.or_nobody(f"saving {path}"):
            if first and not in_place:
                _begin(path, target)
        with together.or_nobody(f"saving {path}"):
            if not target.is_dir():
                raise FileNotFoundError(_not_shared(path, f"rank {together.rank} does not see {target}"))
            save(own, target / _name(together.rank, save_name))
            if first:
                save(shared, target / _name(None, save_name))
            mine = fingerprint(target / _name(together.rank, save_name))
        rows = together.exchange(*mine)
        with together.or_nobody(f"saving {path}"):
            if first:
                files = {_name(rank, save_name): row for rank, row in enumerate(rows)}
                _check_visible(path, target, files)
                name = _name(None, save_name)
                files[name] = list(fingerprint(target / name))
                index = {"format": FORMAT, "workers": together.workers, "save": save_name, "files": files}
                _finish(path, target, index)
    finally:
        if first:
            _tidy(path, target)


def fingerprint(path: Path) -> tuple[int, int]:
    """A file's size in bytes and the CRC-32 of all of them."""
    size = crc = 0
    with open(path, "rb") as file:
        while chunk := file.read(1024 * 1024):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return size, crc


def _name(rank: int | None, save_name: str) -> str:
    return f"{'shared' if rank is None else f'rank_{rank}'}-{save_name}.pt"


def _begin(path: Path, target: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        if not all(_OURS.fullmatch(file.name) for file in path.iterdir()):
            raise FileExistsError(
                f"{path} is a folder that is no checkpoint ({INDEX} is missing), and is not overwritten: "
                "remove it or choose another name"
            )
        shutil.rmtree(path)  # left of one that was not removed to the end
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f"{unfinished_name(path)}-*"):
        shutil.rmtree(left, ignore_errors=True)
    target.mkdir()


def _check_visible(path: Path, target: Path, files: dict[str, list[int]]) -> None:
    for name, (size, _) in files.items():
        if not (target / name).is_file() or (target / name).stat().st_size != size:
            raise FileNotFoundError(_not_shared(path, f"rank 0 does not see all of {target / name}"))


def _not_shared(path: Path, reason: str) -> str:
    return (
        f"{path} could not be written: {reason}. All workers must name the same folder, on a disk that they "
        'share; without one write a single file (state_dict_type="full")'
    )


def _finish(path: Path, target: Path, index: dict[str, Any]) -> None:
    unfinished = target / ".unfinished-index"
    with open(unfinished, "wb") as file:
        file.write(json.dumps({"crc32": zlib.crc32(_text(index)), "index": index}, indent=1).encode())
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, target / INDEX)
    sync_folder(target)
    if target != path:
        aside = path.with_name(f".replaced-file-{path.stem}")
        takes_a_file = path.is_symlink() or path.is_file()  # which a folder cannot replace in one operation
        if takes_a_file:
            os.rename(path, aside)
        try:
            os.rename(target, path)
        except OSError:
            if takes_a_file:
                os.rename(aside, path)
            raise
        sync_folder(path.parent)
        aside.unlink(missing_ok=True)


def _text(index: object) -> bytes:
    return json.dumps(index, sort_keys=True).encode()


def _tidy(path: Path, target: Path) -> None:
    """Remove what no index names: after a failure the new files, after a success the old ones."""
    if target != path:
        shutil.rmtree(target, ignore_errors=True)  # not there any more if all went well
        return
    with suppress(OSError, RuntimeError):
        keep = f"-{CheckpointFolder(path)._save}.pt"
        for file in path.iterdir():
            if _OURS.fullmatch(file.name) and not file.name.endswith(keep):
                file.unlink()


def _damaged(path: Path, reason: object) -> RuntimeError:
    return RuntimeError(
        f"the checkpoint's file {path} is damaged or incomplete ({reason}): use an earlier checkpoint, or "
        "copy it anew from where it is whole"
    )
