"""The strategy has a name in both Lightning namespaces, whichever is imported first."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import lightning.pytorch
import numpy as np
import pytest
import pytorch_lightning
import torch

import lightning_signvr
from lightning_signvr.strategies import lightning_pytorch as for_lightning
from lightning_signvr.strategies import pytorch_lightning as for_pytorch_lightning
from tests.strategies.helpers import (
    QUIET,
    Regression,
    batches,
    environment,
    loader,
    parameters_of,
    same_on_all,
    signum,
)
from tests.workers import run_workers

NAMES = ["sign_vote", "sign_vote_spawn", "sign_vote_fork", "sign_vote_notebook"]
ORDERS = {
    "lightning.pytorch lightning_signvr": "lightning_pytorch",
    "pytorch_lightning lightning_signvr": "pytorch_lightning",
    "lightning_signvr": "lightning_pytorch",
}
"""Modules in the order of their import, and where ``lightning_signvr.SignVoteStrategy`` comes from."""

IMPORT_IN_EACH_ORDER = f"""
import importlib, os, sys
import torch._dynamo, torchmetrics  # slow to import, and common to all
assert not {{"lightning", "pytorch_lightning", "lightning_signvr"}} & set(sys.modules)
for order in sys.argv[1:]:
    if os.fork():
        os.wait()
        continue
    modules = {{name: importlib.import_module(name) for name in order.split()}}
    for namespace in ("lightning.pytorch", "pytorch_lightning"):
        registry = importlib.import_module(namespace + ".strategies").StrategyRegistry
        for name in {NAMES}:
            assert type(registry.get(name)).namespace == namespace, (name, namespace)
    print(order, modules["lightning_signvr"].SignVoteStrategy.__module__, sep=": ", flush=True)
    break
os._exit(0)  # at once: torch takes its time to end
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, str]:
    """For each order, what a process without any Lightning prints after these imports."""
    command = [sys.executable, "-c", IMPORT_IN_EACH_ORDER, *ORDERS]
    done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True, timeout=100)
    return dict(line.split(": ") for line in done.stdout.splitlines())


@pytest.mark.parametrize("order", ORDERS)
def test_importing_registers_in_both_namespaces(order: str, imported: dict[str, str]) -> None:
    assert imported[order] == f"lightning_signvr.strategies.{ORDERS[order]}"


@pytest.mark.parametrize("strategy", [for_lightning.SignVoteStrategy, for_pytorch_lightning.SignVoteStrategy])
def test_registering_twice_changes_nothing(strategy: Any) -> None:
    namespace = sys.modules[f"{strategy.namespace}.strategies"]
    before = {name: namespace.StrategyRegistry[name] for name in NAMES}
    strategy.register_strategies(namespace.StrategyRegistry)
    assert {name: namespace.StrategyRegistry[name] for name in NAMES} == before


class _Regression(pytorch_lightning.LightningModule):
    """The helpers' model as a LightningModule of the other namespace."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.net = Regression(seed=seed).net

    training_step = Regression.training_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return signum(self.parameters())


def _fit_in_both_namespaces(rank: int) -> list[np.ndarray]:
    modules = [Regression(seed=rank), _Regression(seed=rank)]
    for namespace, module in zip((lightning.pytorch, pytorch_lightning), modules, strict=True):
        monitor = lightning_signvr.SignVoteMonitor()
        trainer = namespace.Trainer(**{**QUIET, "callbacks": [monitor]}, devices=2, strategy="sign_vote")
        trainer.fit(module, loader(batches(rank, 5)))
        assert trainer.strategy.namespace == namespace.__name__
        assert monitor.summary()["agreement"] > 0
    return [parameters_of(module) for module in modules]


def test_a_fit_is_the_same_in_both_namespaces() -> None:
    results = run_workers(_fit_in_both_namespaces, 2)
    assert same_on_all(values for own in results for values in own)


@pytest.mark.parametrize(
    ("trainer", "strategy"),
    [
        (lightning.pytorch.Trainer, for_pytorch_lightning.SignVoteStrategy),
        (pytorch_lightning.Trainer, for_lightning.SignVoteStrategy),
    ],
)
def test_the_strategy_of_the_other_namespace_is_refused_with_the_remedy(trainer: Any, strategy: Any) -> None:
    with pytest.raises(
        ValueError, match=r'in other Trainers use strategy="sign_vote", which picks the right one'
    ):
        trainer(accelerator="cpu", strategy=strategy())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ties": "coin"}, "ties"),
        ({"zeros": "drop"}, "zeros"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
    ],
)
def test_bad_arguments_are_refused_at_construction(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lightning_signvr.SignVoteStrategy(**arguments)
