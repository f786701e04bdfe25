"""A rank that died or hangs is named by those that wait for it."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from lightning_signvr.voting import MajorityVote
from tests.workers import WorkerError, run_workers

TIMEOUT = 4  # seconds, of the process group
FAILS_AT = 2


def vote_until(rank: int, victim: int, how: str) -> None:
    stale = dist.PrefixStore("lightning_signvr/failures", dist.distributed_c10d._get_default_store())
    stale.set(str(rank), "what this rank said before a restart")
    vote = MajorityVote(dist.new_group(timeout=timedelta(seconds=TIMEOUT)))
    directions = [torch.ones(100), torch.ones(7)]
    for step in range(FAILS_AT + 1):
        if rank == victim and step == FAILS_AT:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            if how == "stuck":
                time.sleep(TIMEOUT + 20)
            if how == "raises":
                raise ArithmeticError("the worker's own reason")
            if how == "other tensors":
                directions = directions[:1]
        started = time.monotonic()
        try:
            vote(directions)
        except RuntimeError as error:
            raise RuntimeError(f"after {time.monotonic() - started:.1f} s: {error}") from None


def failure(workers: int, victim: int, how: str) -> str:
    with pytest.raises(WorkerError) as error:
        run_workers(vote_until, workers, victim, how, timeout=TIMEOUT + 30)
    return str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "victim", "how"),
    [
        (3, 2, "killed"),
        (3, 0, "killed"),
        (2, 1, "killed"),
        (4, 1, "stopped"),
        (3, 1, "stuck"),
        (3, 0, "raises"),
    ],
)
def test_a_missing_rank_is_named(workers: int, victim: int, how: str) -> None:
    message = failure(workers, victim, how)
    assert message.count(f"no sign of life from rank {victim}:") == workers - 1
    assert f"the vote of step {FAILS_AT} on 2 tensors failed" in message
    if how == "raises":
        assert "the worker's own reason" in message


@pytest.mark.slow
def test_ranks_that_vote_on_other_tensors_after_a_first_vote_end() -> None:
    failure(3, 1, "other tensors")  # gloo ends a process that gets more bytes than it waits for
