"""Which runs a folder holds, and how the files of a run become one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lightning_signvr.report import ReportError, read_runs
from tests.report.pages import write_events


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_a_resumed_run_is_one_run_whatever_its_files_names(tmp_path: Path, names: tuple[str, str]) -> None:
    crashed = {"loss": [(1, 8.0), (2, 7.0), (9, 6.0)], "before": [(1, 1.0)]}
    resumed = {"loss": [(2, 0.5), (3, 0.25)], "after": [(4, 2.0)]}
    for name, scalars in zip(names, [crashed, resumed], strict=True):
        write_events(tmp_path, scalars).rename(tmp_path / f"{name}.tfevents")
    [run], problems = read_runs(tmp_path)
    assert run.name == tmp_path.name
    assert run.scalars == {
        "loss": [(1, 8.0), (2, 0.5), (3, 0.25)],
        "before": [(1, 1.0)],
        "after": [(4, 2.0)],
    }
    assert problems == []


def test_a_second_fit_in_the_same_file_wins(tmp_path: Path) -> None:
    write_events(tmp_path, {"loss": [(0, 9.0), (5, 8.0), (0, 2.0), (1, 1.0)]})
    [run], _ = read_runs(tmp_path)
    assert run.scalars["loss"] == [(0, 2.0), (1, 1.0)]


def test_runs_are_named_by_their_folders_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("version_10", "version_9", "deep/er"):
        write_events(tmp_path / "logs" / name, {"loss": [(0, 1.0)]})
    write_events(tmp_path / "logs", {"loss": [(0, 1.0)]})
    runs, problems = read_runs(tmp_path / "logs")
    assert [run.name for run in runs] == ["logs", "deep/er", "version_9", "version_10"]
    assert problems == []


def test_of_many_runs_those_written_last_are_shown(tmp_path: Path) -> None:
    for number in range(8):
        path = write_events(tmp_path / str(number), {"loss": [(0, float(number))]})
        os.utime(path, (1000.0 - number, 1000.0 - number))
    runs, [problem] = read_runs(tmp_path)
    assert [run.name for run in runs] == ["0", "1", "2", "3", "4", "5"]
    assert "8 runs were found" in problem


def test_a_run_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    write_events(tmp_path / "good", {"loss": [(0, 1.0)]})
    write_events(tmp_path / "without", {})
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.tfevents").write_bytes(b"garbage" * 9)
    runs, problems = read_runs(tmp_path)
    assert [run.name for run in runs] == ["good"]
    assert [problem.split(":")[0] for problem in problems] == ["bad", "without"]


def test_nothing_to_read_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"RUN_DIR .*/absent is not a folder. Give the folder"):
        read_runs(tmp_path / "absent")
    with pytest.raises(
        ReportError, match=r"holds no TensorBoard event files .* Train with a TensorBoardLogger"
    ):
        read_runs(tmp_path)
    file = tmp_path / "x.tfevents"
    file.write_bytes(b"garbage" * 9)
    with pytest.raises(ReportError, match=r"is not a folder"):
        read_runs(file)
    with pytest.raises(ReportError, match=r"can be drawn.\n.*x.tfevents is damaged"):
        read_runs(tmp_path)
