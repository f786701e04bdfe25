"""What a vote takes beside the directions: at most 0.3 byte per parameter, and no more in later votes."""

from __future__ import annotations

import ctypes
import resource
import sys

import pytest
import torch

from lightning_signvr.voting import MajorityVote
from tests.workers import run_workers

TENSORS = 256  # of 2**20 parameters: so many that some MB of constant size do not count


def peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def bytes_per_parameter(rank: int) -> list[float]:
    # glibc keeps freed memory for later, which would count: let it give back what is larger than this
    m_mmap_threshold = -3
    ctypes.CDLL(None).mallopt(m_mmap_threshold, 2**17)
    directions = [torch.full((1024, 1024), 1.0 - 2 * rank)] * TENSORS  # the same memory again and again
    vote = MajorityVote()
    for _ in range(2):
        vote(directions[:1])  # what a first vote loads
    before, peaks = peak(), []
    for _ in range(3):
        vote(directions)
        peaks.append((peak() - before) / (TENSORS * 2**20))
    return peaks


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
@pytest.mark.parametrize("workers", [2, 4])
def test_peak_of_a_vote(workers: int) -> None:
    for first, *_, last in run_workers(bytes_per_parameter, workers):
        assert first <= 0.3
        assert last <= 0.3
