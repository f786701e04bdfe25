"""The promise of the documentation: at most four lines."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parent.parent.parent / "docs" / "accelerate.md"


def test_a_script_changes_by_four_lines() -> None:
    diffs = re.findall(r"^```diff\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(diffs) == 2
    for diff in diffs:
        assert sum(line.startswith("+") for line in diff.splitlines()) == 4
