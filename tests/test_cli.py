"""The program ``lightning-signvr``."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_signvr import cli
from lightning_signvr.planner import METHODS, Costs, Link
from lightning_signvr.planner.measured import Measured

PLAN = ["plan", "--parameters", "25.6M", "--workers", "4", "--link", "1Gbit/s", "--compute", "0.12s"]


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Status, output and errors, wherever it ended."""
    try:
        status = cli.main(arguments)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def without(option: str, *more: str) -> list[str]:
    at = PLAN.index(option)
    return [*PLAN[:at], *PLAN[at + 2 :], *more]


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(["--help"], capsys)
    assert status == 0
    assert all(command in out for command in cli.COMMANDS)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_each_command_is_wired(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run([command, "--help"], capsys)
    assert status == 0
    assert out.startswith(f"usage: lightning-signvr {command}")


def test_plan_prints_steps_break_even_memory_and_advice(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(PLAN, capsys)
    assert (status, err) == (0, "")
    for name in ("fp32 all-reduce", "bf16 all-reduce", "PowerSGD rank 4", "sign vote"):
        assert f"\n{name}" in out
    assert "hierarchical" not in out
    assert "Break-even speed of the link\n  against fp32 DDP: " in out
    memory = out[out.index("Optimizer state") :].split()
    assert all(name in memory or f"{name}," in memory for name in METHODS)
    assert "\nUse it: a step would take " in out


def test_hierarchical_is_planned_where_nodes_have_several_workers(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run([*PLAN, "--workers-per-node", "2", "--node-link", "10GB/s"], capsys)
    assert "\nhierarchical sign vote  " in out
    assert "between 2 nodes, 80 Gbit/s inside" in out


def test_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run([*PLAN, "--json", "--latency", "0.5ms", "--optimizer", "SSVR"], capsys)
    plan = json.loads(out)
    assert plan["parameters"] == 25_600_000
    assert plan["cluster"]["link"] == {
        "bytes_per_second": 125e6,
        "latency": 5e-4,
        "reduce_bytes_per_second": None,
    }
    vote = plan["predictions"]["vote"]
    assert vote["seconds"] == pytest.approx(vote["compute"] + vote["local"] + vote["exchange"])
    assert vote["compute"] == pytest.approx(0.24)
    assert vote["speed_up"] == pytest.approx(plan["predictions"]["fp32"]["seconds"] / vote["seconds"])
    assert plan["state_bytes"]["SSVR"] == 2 * 4 * 25_600_000
    assert plan["advice"]


def test_model_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(without("--parameters", "--model", "torch.nn:Bilinear", "--json"), capsys)
    assert out == ""  # it needs arguments
    status, out, _ = run(without("--parameters", "--model", "tests.test_cli:small", "--json"), capsys)
    assert status == 0
    assert (json.loads(out)["parameters"], json.loads(out)["tensors"]) == (63 * 10, 2)


def small() -> object:
    from torch import nn

    return nn.Linear(62, 10)


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG\r\n\x1a\n"), ("svg", b"<?xml")])
def test_plot(suffix: str, start: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"plan.{suffix}"
    status, _, err = run([*PLAN, "--workers-per-node", "2", "--plot", str(path)], capsys)
    assert (status, err) == (0, "")
    data = path.read_bytes()
    assert data.startswith(start)
    assert len(data) > 10_000


def test_plot_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, out, err = run([*PLAN, "--plot", str(tmp_path / "plan.png")], capsys)
    assert (status, out) == (2, "")
    assert "pip install 'lightning-signvr[plots]'" in err


def test_measured_figures_are_used_where_nothing_else_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = Measured(Link(2e7, 3e-4, 1e7), Costs(pack=5e-9), 0.5, 8, "cpu")
    path = tmp_path / "measured.json"
    path.write_text(measured.to_json())
    given = ["plan", "--parameters", "1M", "--compute", "1s", "--measured", str(path), "--json"]
    cluster = json.loads(run(given, capsys)[1])["cluster"]
    assert (cluster["workers"], cluster["overlap"]) == (8, 0.5)
    assert cluster["link"] == {"bytes_per_second": 2e7, "latency": 3e-4, "reduce_bytes_per_second": 1e7}
    more = [*given, "--workers", "2", "--link", "1MB/s", "--latency", "1ms"]
    plan = json.loads(run(more, capsys)[1])
    assert plan["cluster"]["workers"] == 2
    assert plan["cluster"]["link"] == {
        "bytes_per_second": 1e6,
        "latency": 1e-3,
        "reduce_bytes_per_second": None,
    }
    assert plan["costs"]["pack"] == 5e-9


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "COMMAND"),
        (["plant"], "invalid choice: 'plant'"),
        (without("--parameters"), "one of the arguments --parameters --model is required"),
        (without("--compute"), "--compute"),
        (without("--workers"), "argument --workers: how many"),
        (without("--link"), "argument --link: how fast"),
        ([*PLAN, "--parameters", "many"], "argument --parameters: 'many' is not a whole number"),
        ([*PLAN, "--workers", "0"], "argument --workers: '0' is not a whole number above 0"),
        ([*PLAN, "--link", "1Gbyte"], "argument --link: '1Gbyte' is not a link speed"),
        ([*PLAN, "--node-link", "0bit/s"], "argument --node-link: '0bit/s'"),
        ([*PLAN, "--latency", "1"], "argument --latency: '1' is not a time with its unit"),
        ([*PLAN, "--compute", "0s"], "argument --compute: '0s' is not a time above 0"),
        ([*PLAN, "--optimizer", "Adam"], "argument --optimizer: invalid choice: 'Adam'"),
        ([*PLAN, "--workers-per-node", "3"], "argument --workers-per-node: workers_per_node must divide"),
        ([*PLAN, "--tensors", "30M"], "argument --tensors: tensors is 30000000, more than"),
        ([*PLAN, "--plot", "/no/such/folder/plan.png"], "argument --plot: "),
        ([*PLAN, "--plot", "plan.docx"], "argument --plot: "),
        ([*PLAN, "--measured", "none.json"], "none.json cannot be used"),
        ([*PLAN, "--model", "torch.nn:Linear"], "not allowed with argument --parameters"),
        (
            without("--parameters", "--model", "torch.nn:Linear"),
            "argument --model: torch.nn:Linear cannot be",
        ),
        (without("--parameters", "--model", "nowhere:Net"), "argument --model: nowhere cannot be imported"),
        (
            without("--parameters", "--model", "torch.nn:Transformer", "--tensors", "3"),
            "argument --tensors: only with --parameters",
        ),
    ],
    ids=str,
)
def test_bad_input_ends_with_2_and_a_reason(
    arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(arguments, capsys)
    assert (status, out) == (2, "")
    assert error in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_as_a_program() -> None:
    root = Path(__file__).parent.parent
    ended = subprocess.run(
        [sys.executable, "-m", "lightning_signvr.cli", *PLAN],
        cwd=root, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "Use it" in ended.stdout


def test_the_documentation_shows_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parent.parent / "docs" / "planner.md").read_text()
    [(command, expected)] = re.findall(r"```console\n\$ lightning-signvr (.*)\n([^$]+?)```", page)
    assert run(shlex.split(command), capsys) == (0, expected, "")
