"""Measured figures: as a file, and measured for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_signvr.cli import main
from lightning_signvr.planner import Costs, Link
from lightning_signvr.planner import measure as measuring
from lightning_signvr.planner.measured import Measured, load_measured
from tests.workers import run_workers

EXAMPLE = Measured(Link(1e8, 1e-4, 9e7), Costs(pack=1e-9), 0.75, 4, "cpu")


def test_a_file_gives_the_same_figures(tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    path.write_text(EXAMPLE.to_json())
    assert load_measured(path) == EXAMPLE


def _changed(**changes: Any) -> str:
    return json.dumps({**json.loads(EXAMPLE.to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "not of the format"),
        ('{"format": "something else"}', "not of the format"),
        (_changed(link=None), "missing or unknown|NoneType"),
        (_changed(link={"bytes_per_second": 1e8}), "latency"),
        (_changed(link={"bytes_per_second": 0, "latency": 0}), "speed of the link must be above 0"),
        (_changed(link={"bytes_per_second": "1Gbit/s", "latency": 0}), "bytes_per_second must be a number"),
        (_changed(costs={"pack": -1}), "pack must be a number of at least 0, got -1"),
        (_changed(costs={"pack": float("nan")}), "pack must be a number"),
        (_changed(costs={"peck": 1e-9}), "peck"),
        (_changed(overlap=1.5), "overlap must be at most 1"),
        (_changed(workers=0), "workers must be a whole number above 0"),
        (_changed(workers="2"), "workers must be a whole number above 0"),
    ],
    ids=str,
)
def test_damaged_files_say_what_is_wrong(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"measured.json cannot be used: .*({reason})"):
        load_measured(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.json cannot be used: .*No such file"):
        load_measured(tmp_path / "none.json")


def _measure(rank: int) -> Measured:
    measuring.ELEMENTS, measuring.LARGEST_REDUCE = 2**20, 2**21  # quick rather than exact
    return measuring.measure(torch.device("cpu"))


def test_all_workers_measure_the_same() -> None:
    first, second = run_workers(_measure, 2)
    assert first == second
    assert Measured.from_json(first.to_json()) == first
    assert first.workers == 2
    assert first.device == "cpu"
    assert 1e6 < first.link.bytes_per_second < 1e11
    assert 1e6 < first.link.reduce_rate < 1e11
    assert 1e-6 < first.link.latency < 0.1
    costs = first.costs
    for cost in (costs.pack, costs.tally, costs.apply, costs.elementwise, costs.low_rank):
        assert 1e-12 < cost < 1e-6
    assert 1e-7 < costs.per_tensor < 0.01
    assert "2 workers on cpu" in measuring.describe(first)


@pytest.mark.parametrize(
    ("environment", "options", "reason"),
    [
        ({}, [], "start it with torchrun"),
        ({"RANK": "0"}, [], "WORLD_SIZE, MASTER_ADDR, MASTER_PORT not set"),
        ({"WORLD_SIZE": "1"}, [], "one worker has no link"),
        ({"WORLD_SIZE": "2"}, ["--out", "/no/such/folder/file.json"], "folder of /no/such/folder/file.json"),
        ({"WORLD_SIZE": "2"}, ["--timeout", "soon"], "'soon' is not a time"),
    ],
    ids=["no torchrun", "half of torchrun", "alone", "out", "timeout"],
)
def test_bad_starts_end_with_an_error(
    environment: dict[str, str],
    options: list[str],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    full = (
        {"RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"} if "WORLD_SIZE" in environment else {}
    )
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**(full if "WORLD_SIZE" in environment else {}), **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        measuring.main(options)
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_torchrun_measures_and_plan_uses_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "measured.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "lightning_signvr.planner.measure", "--out", str(out)]
    root = str(Path(__file__).parent.parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("2 workers on cpu") == 1  # rank 0 alone speaks
    measured = load_measured(out)

    arguments = ["plan", "--parameters", "10.5M", "--compute", "40ms", "--measured", str(out), "--json"]
    assert main(arguments) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["cluster"]["workers"] == 2
    assert planned["cluster"]["link"]["bytes_per_second"] == measured.link.bytes_per_second
    assert planned["costs"]["pack"] == measured.costs.pack
