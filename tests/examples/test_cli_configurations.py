"""The configuration files for LightningCLI, and that everything can be configured that way."""

from __future__ import annotations

import contextlib
import inspect
import io
import runpy
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningCLI

import lightning_signvr.fabric
from lightning_signvr import callbacks, optimizers
from lightning_signvr.callbacks import SignVoteMonitor
from lightning_signvr.strategies import lightning_pytorch, pytorch_lightning
from tests.examples.running import ROOT
from tests.strategies.helpers import parameters_of, same_on_all
from tests.workers import run_workers

FOLDER = ROOT / "examples" / "cli"
FILES = ["trainer", "strategy", "optimizer", "callbacks"]


def run(*arguments: str) -> tuple[LightningCLI | None, str, list[str]]:
    """The program, what it printed and its warnings."""
    program = runpy.run_path(str(FOLDER / "train.py"))
    cli, printed = None, io.StringIO()
    with warnings.catch_warnings(record=True) as seen, contextlib.redirect_stdout(printed):
        warnings.simplefilter("always")
        with contextlib.suppress(SystemExit):  # how --print_config ends
            sys.argv = ["train.py", "fit", *arguments]
            cli = LightningCLI(program["Regression"], program["Sine"])
    return cli, printed.getvalue(), [str(warning.message) for warning in seen]


def print_and_fit(rank: int, folder: str) -> dict[str, Any]:
    files = [argument for name in FILES for argument in ("--config", str(FOLDER / f"{name}.yaml"))]
    _, printed, warned = run(*files, "--print_config")
    path = Path(folder) / f"printed.{rank}.yaml"
    path.write_text(printed)
    cli, _, _ = run("--config", str(path), "--trainer.default_root_dir", folder)
    assert cli is not None
    [vote] = cli.trainer.strategy.votes
    [monitor] = [item for item in cli.trainer.callbacks if isinstance(item, SignVoteMonitor)]
    return {
        "printed": printed,
        "warned": warned,
        "parameters": parameters_of(cli.model),
        "steps": vote.step,
        "rules": repr(vote),
        "optimizer": type(cli.trainer.optimizers[0]).__name__,
        "agreement": monitor.summary()["agreement"],
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_workers(print_and_fit, 2, str(tmp_path_factory.mktemp("cli")))


def test_the_printed_configuration_is_clean(results: list[dict[str, Any]]) -> None:
    for own in results:
        assert own["warned"] == []
        assert "object at" not in own["printed"]
        assert "!!" not in own["printed"]  # tags of Python objects


def test_the_printed_configuration_trains(results: list[dict[str, Any]]) -> None:
    assert same_on_all(own["parameters"] for own in results)
    assert [own["steps"] for own in results] == [2 * 1024 / 32 / 2 / 2] * 2
    assert results[0]["rules"] == "MajorityVote(ties='random', zeros='abstain', seed=0)"
    assert results[0]["optimizer"] == "SSVR"
    assert 0 < results[0]["agreement"] <= 1
    assert np.isfinite(results[0]["parameters"]).all()


CONFIGURABLE = [
    *(getattr(optimizers, name) for name in optimizers.__all__ if name[0].isupper()),
    *(getattr(callbacks, name) for name in callbacks.__all__),
    lightning_pytorch.SignVoteStrategy,
    pytorch_lightning.SignVoteStrategy,
    lightning_signvr.fabric.SignVoteStrategy,
]
REQUIRED = {"lr": 0.1, "batches": 2}
BASES = {"AnchoredOptimizer", "SignOptimizer", "SnapshotOptimizer", "FirstBatchOptimizer"}


@pytest.mark.parametrize(
    "configurable",
    [item for item in CONFIGURABLE if item.__name__ not in BASES],
    ids=lambda item: f"{item.__module__}.{item.__name__}",
)
def test_every_constructor_is_typed(configurable: type) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(configurable, "it", skip={"params"}, fail_untyped=True)
    given = {name: REQUIRED[name] for name in inspect.signature(configurable).parameters if name in REQUIRED}
    dumped = parser.dump(parser.parse_object({"it": given} if given else {}))
    assert "object at" not in dumped
