"""The restoration of a photograph, as a user would run it."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent


# torchmetrics may import matplotlib where it is installed, so it is hidden afterwards
HIDDEN = """
import runpy, sys, lightning_signvr
sys.modules["matplotlib"] = None
runpy.run_path("examples/restore_photo.py", run_name="__main__")
"""


def run_without_matplotlib(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HIDDEN, *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=110, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.slow
def test_signprox_restores_a_photograph() -> None:
    result = run_without_matplotlib("--iterations", "15", "--components", "8")
    assert result.returncode == 0, result.stderr
    rows = re.findall(r"^(\S.*?) {2,}(\d+\.\d+) +(\d+\.\d+)$", result.stdout, re.MULTILINE)
    figures = {name: (float(objective), float(psnr)) for name, objective, psnr in rows}
    objective, psnr = figures.pop("noisy photograph")
    assert list(figures) == ["proximal gradient", "SignProx, all components", "SignProx, 8 random"]
    for name in list(figures)[1:]:
        assert figures[name][0] < 0.5 * objective, result.stdout
        assert figures[name][1] > psnr + 5, result.stdout


def test_a_plot_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    example = runpy.run_path(str(ROOT / "examples" / "restore_photo.py"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    image = torch.zeros(4, 4)
    with pytest.raises(SystemExit, match="pip install matplotlib"):
        example["plot"](Path("unused.png"), image, image, [])
