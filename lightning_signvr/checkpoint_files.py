"""Checkpoint files that are whole or not there, and that are refused when damaged.

The format is ``torch.save``'s, a zip archive with a CRC-32 of each record. ``torch.load`` does not look at
them: a flipped bit in a tensor loads as another number.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch


def save(contents: Any, path: str | Path) -> None:
    """As ``torch.save``, but a crash at any byte leaves what was at ``path`` before.

    Written to another file in the same folder, which takes the name when all of it is on the disk. After a
    crash that file, ``.unfinished-*``, stays; it may be deleted, and the next save under the name does.

    Args:
        contents: what ``torch.save`` takes.
        path: of a local file, in a folder that is there.

    Raises:
        OSError: it could not be written (a full disk); what was there before still is.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     save({"step": 7}, f"{folder}/checkpoint.pt")
        ...     load(f"{folder}/checkpoint.pt")
        {'step': 7}
    """
    path = Path(path)
    unfinished = path.with_name(unfinished_name(path))
    try:
        with open(unfinished, "wb") as file:
            with _checksums():
                torch.save(contents, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except (OSError, RuntimeError) as error:  # torch says RuntimeError where a write fails
        unfinished.unlink(missing_ok=True)
        raise OSError(f"{path} could not be written: {error}; what was there before is untouched") from error
    sync_folder(path.parent)


def unfinished_name(path: Path) -> str:
    """What is written first, and takes the name of ``path`` when all of it is there."""
    # not a name with the checkpoint's own in it, which programs that look for the last one may take
    return f".unfinished-{zlib.crc32(path.name.encode()):08x}"


def sync_folder(folder: Path) -> None:
    """A new name in it, too, must outlive a loss of power."""
    if os.name == "posix":
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def load(path: str | Path) -> Any:
    """What :func:`save` or ``torch.save`` wrote, on the CPU; nothing but tensors and plain values.

    Raises:
        RuntimeError: the file is damaged.
        pickle.UnpicklingError: it holds other objects.
    """
    with open(path, "rb") as file:
        check_whole(file, path)
        file.seek(0)
        with named_if_unreadable(path):
            return torch.load(file, map_location="cpu", weights_only=True)


def check_whole(file: IO[bytes], name: object) -> None:
    """Compare every record with its checksum, which takes about as long as reading the file.

    Args:
        file: of ``torch.save``, open.
        name: for the message.

    Raises:
        RuntimeError: the file is damaged, or not of ``torch.save``.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except Exception as error:  # zipfile raises many kinds, depending on which bytes are wrong
        raise RuntimeError(_message(name, error)) from error
    if damaged is not None:
        raise RuntimeError(_message(name, f"the record {damaged!r} does not match its checksum"))


@contextmanager
def named_if_unreadable(name: object) -> Iterator[None]:
    """For what only torch finds wrong: the directory of an archive has no checksum of its own."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(_message(name, error)) from error


def _message(name: object, reason: object) -> str:
    return (
        f"the checkpoint {name} is damaged or incomplete ({reason}): use an earlier one, or copy it anew "
        "from where it is whole"
    )


@contextmanager
def _checksums() -> Iterator[None]:
    """Whatever the program has chosen, or else the file would be refused as damaged."""
    if not hasattr(torch.serialization, "set_crc32_options"):  # before torch 2.6: always on
        yield
        return
    chosen = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(chosen)
