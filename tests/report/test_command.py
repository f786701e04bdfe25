"""The command: exit codes, and what it says."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from lightning_signvr.report import command
from tests.report.pages import Page, write_events


def _run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(word) for word in words]))


def test_it_writes_a_page_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_events(tmp_path / "logs", {"loss": [(0, 2.0), (1, 1.0)]})
    monkeypatch.chdir(tmp_path)
    assert _run("logs") == 0
    Page((tmp_path / "report.html").read_text())
    printed, error = capsys.readouterr()
    assert re.fullmatch(r"Wrote report.html, \d kB.\n", printed)
    assert error == ""


def test_what_cannot_be_read_is_said_on_the_page_and_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_events(tmp_path / "logs", {"loss": [(0, 2.0), (1, 1.0), (2, 0.5)]})
    path.write_bytes(path.read_bytes()[:-7])
    assert _run(tmp_path / "logs", "--out", tmp_path / "out.html") == 0
    warning = capsys.readouterr().err.strip()
    assert warning.startswith(f"warning: logs: {path.name} is damaged or unfinished: only its first ")
    texts = Page((tmp_path / "out.html").read_text()).texts
    assert warning.removeprefix("warning: ") in texts
    assert texts[texts.index("Final loss") + 1] == "1"


@pytest.mark.parametrize(
    ("run_dir", "out", "said"),
    [
        ("absent", "out.html", "absent is not a folder"),
        ("empty", "out.html", "empty holds no TensorBoard event files"),
        ("garbage", "out.html", "garbage can be drawn.\ngarbage: x.tfevents is damaged"),
        ("good", "good", "good cannot be written: Is a directory"),
        ("good", "absent/out.html", "absent/out.html cannot be written: No such file or directory"),
    ],
)
def test_errors_end_with_2_and_one_clear_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run_dir: str, out: str, said: str
) -> None:
    for name in ("empty", "garbage"):
        (tmp_path / name).mkdir()
    (tmp_path / "garbage" / "x.tfevents").write_bytes(bytes(range(256)))
    write_events(tmp_path / "good", {"loss": [(0, 2.0)]})
    assert _run(tmp_path / run_dir, "--out", tmp_path / out) == 2
    printed, error = capsys.readouterr()
    assert printed == ""
    assert error.startswith("error: ")
    assert said in error
    assert not (tmp_path / "out.html").exists()
