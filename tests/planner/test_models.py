"""Shapes of real models and of assumed ones."""

from __future__ import annotations

import sys
from math import prod
from pathlib import Path

import pytest

from lightning_signvr.planner import assumed_shapes, load_shapes

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.linear = nn.Linear(5, width)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

class Reads(Net):
    def __init__(self):
        super().__init__()
        self.first = self.linear.weight[0, 0].item()  # the meta device has no numbers

def wide():
    return Net(7)

def huge():
    return nn.Linear(2**20, 2**20, bias=False)  # 4 TB for real

def needs(width):
    return Net(width)

def raises():
    raise RuntimeError("no such weather")

def lazy():
    return nn.LazyLinear(3)

net = Net()
text = "text"
def nothing():
    return None
class Nested:
    Net = Net
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "planned_models.py").write_text(SOURCE)
    (tmp_path / "planned_broken.py").write_text("import no_such_module_anywhere\n")
    (tmp_path / "planned_script.py").write_text("import sys\nsys.exit('usage: ...')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "planned_models", raising=False)
    return "planned_models"


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("Net", [(3, 5), (3,)]),
        ("Nested.Net", [(3, 5), (3,)]),
        ("Reads", [(3, 5), (3,)]),
        ("wide", [(7, 5), (7,)]),
        ("net", [(3, 5), (3,)]),
        ("huge", [(2**20, 2**20)]),
    ],
)
def test_trainable_parameters_of_a_model_in_the_working_directory(
    models: str, name: str, shapes: list[tuple[int, ...]]
) -> None:
    assert load_shapes(f"{models}:{name}") == shapes


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("planned_models", "form package.module:Class"),
        (":Net", "form package.module:Class"),
        ("planned_models:", "form package.module:Class"),
        ("planned_nowhere:Net", "planned_nowhere cannot be imported: ModuleNotFoundError"),
        ("planned_broken:Net", "planned_broken cannot be imported.*no_such_module_anywhere"),
        ("planned_script:Net", "planned_script cannot be imported: SystemExit: usage"),
        ("planned_models:Other", "planned_models has no 'Other'"),
        ("planned_models:Net.Other", "planned_models has no 'Net.Other'"),
        ("planned_models:text", "is a str, not a class or function"),
        ("planned_models:needs", "cannot be called without arguments: TypeError.*width"),
        ("planned_models:raises", "cannot be called without arguments: RuntimeError: no such weather"),
        ("planned_models:nothing", "gives a NoneType"),
        ("planned_models:lazy", "'weight' of planned_models:lazy has no shape"),
        ("torch.nn:Identity", "no trainable parameters"),
    ],
)
def test_what_gives_no_model_says_why(models: str, path: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        load_shapes(path)


@pytest.mark.parametrize(
    ("parameters", "tensors"),
    [
        (1, None),
        (2, None),
        (25_600_000, None),
        (25_600_000, 161),
        (124_439_808, 148),
        (7, 7),
        (10, 1),
        (11, 2),
    ],
)
def test_assumed_shapes_add_up(parameters: int, tensors: int | None) -> None:
    shapes = assumed_shapes(parameters, tensors)
    assert sum(map(prod, shapes)) == parameters
    assert tensors is None or len(shapes) == tensors
    assert all(shape and min(shape) >= 0 for shape in shapes)
    matrices = [shape for shape in shapes if len(shape) == 2]
    if parameters > 1000:  # nearly all parameters are in equal squares
        assert sum(map(prod, matrices)) > 0.99 * parameters
        assert len(set(matrices)) == 1
        assert matrices[0][0] == matrices[0][1]


def test_more_tensors_than_parameters_cannot_be() -> None:
    with pytest.raises(ValueError, match="tensors is 9, more than the 8 parameters"):
        assumed_shapes(8, 9)
