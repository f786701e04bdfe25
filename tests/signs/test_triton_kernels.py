from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

from lightning_signvr.signs import dispatch, oracle

ROOT = Path(__file__).parent.parent.parent


def run(*arguments: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def triton_version() -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in version("triton").split(".")[:2])
    except PackageNotFoundError:
        return ()


needs_interpreter = pytest.mark.skipif(
    triton_version() < (3, 9), reason="needs Triton 3.9 (Linux), whose interpreter rounds a fused sum once"
)


def run_in_interpreter(*tests: str) -> None:
    """Run tests in a process in which Triton interprets its kernels."""
    options = ("-p", "no:cacheprovider", "-p", "no:xdist")
    printed = run("-m", "pytest", *options, *tests, TRITON_INTERPRET="1")
    assert " passed" in printed
    assert "skipped" not in printed


@needs_interpreter
@pytest.mark.slow
def test_the_kernels_equal_the_oracle_in_tritons_interpreter() -> None:
    run_in_interpreter("tests/signs/triton_cases.py")


def test_without_triton_plain_torch_does_it_and_the_log_says_so_once(monkeypatch, caplog) -> None:
    for name in [name for name in sys.modules if name.startswith("lightning_signvr.signs.triton_kernels")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)  # importing it raises ModuleNotFoundError
    monkeypatch.setattr(dispatch, "TRITON_DEVICES", {"meta"})
    dispatch._that_work.cache_clear()
    for _ in range(2):
        assert dispatch.kernels_of(torch.device("meta")) is oracle
    dispatch._that_work.cache_clear()
    assert len(caplog.records) == 1
    assert caplog.records[0].levelname == "WARNING"
    assert caplog.messages[0].startswith("Triton kernels do not run on meta (ModuleNotFoundError: ")


def test_devices_without_fast_kernels_get_plain_torch() -> None:
    assert dispatch.kernels_of(torch.device("meta")) is oracle
