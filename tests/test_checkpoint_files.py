"""A crash at any byte of a write leaves the file before, and a damaged file is refused."""

from __future__ import annotations

import pickle
import resource
import signal
import subprocess
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from lightning_signvr.checkpoint_files import load, save
from tests.workers import _context  # a server that forks quickly

OLD, NEW = {"step": 1, "weight": torch.zeros(3000)}, {"step": 2, "weight": torch.ones(3000)}


def write(path: Path, elements: int, limit: int | None) -> None:
    """In a process of its own; the kernel kills it where it writes beyond ``limit``, in the middle."""
    if limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    save({"step": 2, "weight": torch.ones(elements)}, path)


def begin_to_write(path: Path, elements: int, limit: int | None = None) -> BaseProcess:
    writer = _context.Process(target=write, args=(path, elements, limit))
    writer.start()
    return writer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save(OLD, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def is_old(path: Path) -> bool:
    found = load(path)
    return found["step"] == 1 and torch.equal(found["weight"], OLD["weight"])


def test_the_file_is_torchs_and_replaces_the_one_before(path: Path) -> None:
    save(NEW, path)
    assert torch.equal(torch.load(path, weights_only=True)["weight"], NEW["weight"])
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("limit", [0, 1, 700, 6000, 12_000])
def test_a_crash_at_a_byte_leaves_the_file_before(limit: int, path: Path) -> None:
    writer = begin_to_write(path, 3000, limit)
    writer.join(100)
    assert writer.exitcode == -signal.SIGXFSZ
    assert is_old(path)
    unfinished = [file for file in path.parent.iterdir() if file != path]
    assert [file.stat().st_size for file in unfinished] == [limit]
    assert not any("last" in file.name for file in unfinished)
    save(NEW, path)
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.slow
def test_kill_9_while_writing_leaves_the_file_before(path: Path) -> None:
    writer = begin_to_write(path, 2**27)
    while sum(file.stat().st_size for file in path.parent.iterdir()) < 50e6:
        assert writer.is_alive()
        time.sleep(0.01)
    writer.kill()
    writer.join(100)
    assert writer.exitcode == -signal.SIGKILL
    assert is_old(path)


def test_a_failed_write_is_an_error_and_leaves_the_file_before(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))  # Python ignores the signal: an error
    try:
        with pytest.raises(OSError, match=r"last.ckpt could not be written: .*before is untouched"):
            save(NEW, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert is_old(path)
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.slow
def test_a_full_file_system_is_an_error_and_leaves_the_file_before(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.decode().strip()}")
    try:
        path = tmp_path / "last.ckpt"
        save(OLD, path)
        with pytest.raises(OSError, match=r"last.ckpt could not be written: .*before is untouched"):
            save({"weight": torch.ones(30_000)}, path)
        assert is_old(path)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_flipped_bit_that_torch_does_not_see_is_refused(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    assert not torch.equal(torch.load(path, weights_only=True)["weight"], OLD["weight"])
    with pytest.raises(RuntimeError, match=r"last.ckpt is damaged or incomplete \(the record .* earlier one"):
        load(path)


def test_files_have_checksums_whatever_the_program_chose(path: Path) -> None:
    chosen = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        save(NEW, path)
        assert not torch.serialization.get_crc32_options()
    finally:
        torch.serialization.set_crc32_options(chosen)
    assert load(path)["step"] == 2


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    torch.save({"path": Path("x")}, tmp_path / "objects.pt")
    with pytest.raises(pickle.UnpicklingError):
        load(tmp_path / "objects.pt")


def test_an_error_of_a_value_is_not_called_a_full_disk(path: Path) -> None:
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        save({"function": lambda: None}, path)
    assert is_old(path)
