"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A Trainer in this process chooses another number, and sums then have other roundings."""
    yield
    torch.set_num_threads(1)
