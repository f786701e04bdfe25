"""Machines come and go: torchrun starts all workers again, in their new number, from the last checkpoint."""

from __future__ import annotations

import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.running import (
    TORCHRUN,
    Program,
    Start,
    check_same_end,
    fault_of,
    starts_of,
    train_here,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

RENDEZVOUS = "join_timeout=60,last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=5"


class Machines:
    """Agents of torchrun, each with one worker, as on machines of their own.

    Args:
        loop: a name of :data:`PROGRAMS`.
        folder: for all that they leave behind.
        options: of the program.
    """

    def __init__(self, loop: str, folder: Path, *options: str) -> None:
        self._loop, self._folder, self._options = loop, folder, options
        self._programs: list[Program] = []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._endpoint = f"127.0.0.1:{probe.getsockname()[1]}"

    def add(self, *options: str) -> None:
        """One more; the first one is where they meet."""
        agent = {
            "--nnodes": "1:3",
            "--nproc-per-node": "1",
            "--max-restarts": "3",
            "--rdzv-backend": "c10d",
            "--rdzv-id": "job",
            "--rdzv-endpoint": self._endpoint,
            "--rdzv-conf": f"is_host={int(not self._programs)},{RENDEZVOUS}",
        }
        launcher = [*TORCHRUN, *(word for option in agent.items() for word in option)]
        options = *self._options, *options
        self._programs.append(Program(self._loop, self._folder, *options, launcher=launcher))

    def wait(self) -> tuple[list[int], str]:
        """Until all have ended: their exit codes, and what they said."""
        with ThreadPoolExecutor(len(self._programs)) as pool:
            ends = list(pool.map(lambda program: program.wait(120), self._programs))
        return [end.exit_code for end in ends], "\n".join(end.output for end in ends)

    def kill(self) -> None:
        for program in self._programs:
            program.kill()


def wait_for_starts(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(starts_of(folder)) < count:
        assert time.monotonic() < deadline, f"no start {count} after {starts_of(folder)}"
        time.sleep(0.1)


def replay(loop: str, folder: Path, starts: list[Start], steps: int) -> None:
    """What has to come out: as many workers for as many steps, with nothing going wrong."""
    for start, end in zip(starts, [*(start.step for start in starts[1:]), steps], strict=True):
        train_here(loop, folder, "--steps", str(end), "--every", "10", workers=start.workers)


@pytest.mark.parametrize(("loop", "joins"), [("Lightning", False), ("plain", True)])
def test_a_lost_machine(loop: str, joins: bool, tmp_path: Path) -> None:
    folder, expected = tmp_path / "run", tmp_path / "expected"
    folder.mkdir()
    expected.mkdir()
    steps, pause = (400, "0.1") if joins else (60, "0")
    machines = Machines(loop, folder, "--steps", str(steps), "--every", "10", "--pause", pause)
    try:
        machines.add()
        machines.add()
        machines.add("--fault", "machine", "--step", "25")
        if joins:
            wait_for_starts(folder, 2)
            machines.add()
        exit_codes, output = machines.wait()
    finally:
        machines.kill()

    assert exit_codes == [0, 0, -9, *([0] if joins else [])], output[-8000:]
    at, rank = fault_of(folder)
    assert re.search(rf"no sign of life from rank {rank}\b|rank 0 was killed", output), output[-8000:]
    starts = starts_of(folder)
    assert [start[:2] for start in starts[:2]] == [(3, 0), (2, 20)]
    assert [start.workers for start in starts[2:]] == [3] * joins
    print(f"\n{loop}: two go on after {starts[1].at - at:.1f} s")
    replay(loop, expected, starts, steps)
    check_same_end(folder, expected, workers=starts[-1].workers)
