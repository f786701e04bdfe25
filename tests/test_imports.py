"""What can be imported where Lightning, Accelerate and their kind are not installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.strategies.helpers import environment

PROGRAM = """
import sys

MISSING = ["lightning", "pytorch_lightning", "lightning_fabric", "lightning_utilities", "torchmetrics",
           "accelerate", "transformers", "tensorboard", "jsonargparse", "matplotlib"]
for name in MISSING:
    sys.modules[name] = None  # importing it raises ModuleNotFoundError

import lightning_signvr
from lightning_signvr import *
for layer in ("signs", "voting", "estimators", "proximal", "optimizers", "replay", "amp", "local_gradients",
              "module_state"):
    __import__(f"lightning_signvr.{layer}")

import torch
from lightning_signvr.optimizers import SSVR
from lightning_signvr.replay import Replay

model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
optimizer = SSVR(model.parameters(), lr=0.1)
replay = Replay(optimizer, model)
for _ in range(3):
    optimizer.zero_grad()
    replay.backward(lambda: model(torch.randn(4, 2)).square().sum())
    optimizer.step()

for name in ("SignVoteMonitor", "SignVoteStrategy"):
    try:
        getattr(lightning_signvr, name)
    except ImportError as error:
        print(error)
assert not hasattr(lightning_signvr, "anything_else")
assert not {name.split(".")[0] for name, module in sys.modules.items() if module} & set(MISSING)
"""

NOT_YET = """
import sys
import lightning_signvr.optimizers, lightning_signvr.replay, lightning_signvr.amp

assert not {"lightning", "pytorch_lightning", "torchmetrics", "accelerate"} & set(sys.modules)
assert not hasattr(lightning_signvr, "anything_else")
"""
AS_EVER = """
import sys
import lightning.pytorch
before = set(sys.modules)
import lightning_signvr

added = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(added & {"accelerate", "jsonargparse", "tensorboard", "transformers", "matplotlib", "triton"}))
"""
WHEN_USED = (
    NOT_YET
    + """
strategy = lightning_signvr.SignVoteStrategy
from lightning.pytorch.strategies import StrategyRegistry
assert type(StrategyRegistry.get("sign_vote")) is strategy
"""
)


def run(program: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment(), **variables},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_who_asks_for_it_does_not_pay_for_lightning() -> None:
    run(NOT_YET, LIGHTNING_SIGNVR_REGISTER="0")


@pytest.mark.slow
def test_beside_lightning_nothing_heavy_is_imported() -> None:
    assert run(AS_EVER) == "[]\n"


@pytest.mark.slow
def test_the_strategies_are_there_when_they_are_used() -> None:
    run(WHEN_USED, LIGHTNING_SIGNVR_REGISTER="0")


def test_everything_below_the_strategies_works_alone() -> None:
    assert run(PROGRAM).splitlines() == [
        f"{name} needs Lightning, which is not installed here: pip install lightning"
        for name in ("SignVoteMonitor", "SignVoteStrategy")
    ]
