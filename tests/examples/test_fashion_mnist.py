"""Fashion-MNIST with Lightning, as a user would run it."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from tests.examples.running import ROOT, run_example

DATA = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.slow
@pytest.mark.skipif(not DATA.exists(), reason="needs Debian's package dataset-fashion-mnist")
def test_two_workers_learn_with_one_bit(tmp_path: Path) -> None:
    options = ("--accelerator", "cpu", "--epochs", "1", "--images", "12800", "--logs", str(tmp_path))
    output = run_example("fashion_mnist.py", *options)
    [accuracy] = re.findall(r"^epoch 1: test accuracy (\S+)$", output, re.MULTILINE)
    assert float(accuracy) > 0.75
    assert "100 steps of 2 workers" in output
    [bits] = re.findall(r"^bits_per_parameter +(\S+)$", output, re.MULTILINE)
    assert 1 <= float(bits) < 1.1


def test_without_data_it_says_what_to_do(tmp_path: Path) -> None:
    find = runpy.run_path(str(ROOT / "examples" / "fashion_mnist.py"))["find"]
    with pytest.raises(SystemExit, match="there is no train-images"):
        find(tmp_path)
