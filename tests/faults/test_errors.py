"""A rank that raises: its own message comes out, and the others end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.running import PROGRAMS, Program, saved_step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

MESSAGES = {"error": "ValueError: this sample cannot be read", "memory": "can't allocate memory"}


@pytest.mark.parametrize("what", MESSAGES)
@pytest.mark.parametrize("loop", PROGRAMS)
def test_its_message_comes_first(loop: str, what: str, tmp_path: Path) -> None:
    ended = Program(loop, tmp_path, "--fault", what, "--step", "7", "--victim", "1").wait()
    assert ended.exit_code != 0
    assert ended.seconds is not None
    assert ended.seconds < 20
    print(f"\n{what}, {loop}: all ended after {ended.seconds:.1f} s")
    message = ended.output.find(MESSAGES[what])
    assert message >= 0, ended.output[-8000:]
    assert "Connection closed" not in ended.output[:message]
    assert saved_step(loop, tmp_path) == 5
