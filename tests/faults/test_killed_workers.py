"""Kill -9 a worker anywhere in a step: all end, the rank is named, and a restart loses nothing but steps."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.faults import KILLS
from tests.faults.running import (
    ON_ONE_MACHINE,
    PROGRAMS,
    Program,
    check_same_end,
    fault_of,
    saved_step,
    starts_of,
    train_here,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

VICTIMS = {"backward": 1, "phase one": 0, "phase two": 2, "update": 1, "save": 0}
STEPS = {"backward": 12, "phase one": 12, "phase two": 12, "update": 12, "save": 14}
"""The step in which it happens, counted from 0; there are checkpoints after each five."""


def names(loop: str, where: str) -> str:
    """What in the output says who is missing, as a regular expression."""
    rank = VICTIMS[where]
    if loop == "plain":  # torchrun ends the others at once, and says it itself
        return rf"Root Cause [^=]*rank +: {rank} "
    if rank == 0:  # which has the store through which the others could ask
        return "rank 0 was killed"
    return rf"no sign of life from rank {rank}\b|\[rank: {rank}\] Child process .* terminated with code -9"


def options_of(where: str) -> list[str]:
    return ["--fault", where, "--step", str(STEPS[where]), "--victim", str(VICTIMS[where])]


@pytest.mark.parametrize("where", KILLS)
@pytest.mark.parametrize("loop", PROGRAMS)
def test_all_end_and_a_restart_goes_on(
    loop: str, where: str, uninterrupted: Callable[[str], Path], tmp_path: Path
) -> None:
    ended = Program(loop, tmp_path, *options_of(where)).wait()
    assert ended.exit_code != 0
    assert re.search(names(loop, where), ended.output), ended.output[-8000:]
    assert ended.seconds is not None
    assert ended.seconds < 20

    lost = STEPS[where] + (where == "save") - saved_step(loop, tmp_path)
    assert lost == (5 if where == "save" else 2)
    print(f"\n{where}, {loop}: all ended after {ended.seconds:.1f} s, {lost} steps lost")

    train_here(loop, tmp_path)
    assert [start[:2] for start in starts_of(tmp_path)] == [(3, 0), (3, 10)]
    check_same_end(tmp_path, uninterrupted(loop))


@pytest.mark.parametrize(("loop", "where"), [("plain", "phase two"), ("Lightning", "update")])
def test_torchrun_restarts_by_itself(
    loop: str, where: str, uninterrupted: Callable[[str], Path], tmp_path: Path
) -> None:
    launcher = [*ON_ONE_MACHINE, "--max-restarts", "1"]
    ended = Program(loop, tmp_path, *options_of(where), launcher=launcher).wait()
    assert ended.exit_code == 0, ended.output[-8000:]
    starts = starts_of(tmp_path)
    assert [start[:2] for start in starts] == [(3, 0), (3, 10)]
    print(f"\n{where}, {loop}: goes on after {starts[1].at - fault_of(tmp_path)[0]:.1f} s")
    check_same_end(tmp_path, uninterrupted(loop))
