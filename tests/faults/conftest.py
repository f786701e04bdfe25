"""What the tests of this folder compare with."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.faults.running import train_here


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a run of a program, by its loop, in which nothing goes wrong."""

    @cache
    def train(loop: str) -> Path:
        folder = tmp_path_factory.mktemp("uninterrupted")
        train_here(loop, folder)
        return folder

    return train
