"""Nothing that came from another worker or out of a file is unpickled."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lightning_signvr.accelerate import rank_files

PACKAGE = Path(__file__).parent.parent / "lightning_signvr"
SOURCES = sorted(PACKAGE.rglob("*.py"))
PICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def complaints(source: str) -> Iterator[str]:
    """What in a module could run code that somebody else sent."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in PICKLERS)
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").split(".")[0], *(alias.name for alias in node.names)}
            yield from (name for name in names if name in PICKLERS or is_object_collective(name))
            if node.module in ("torch", "torch.serialization") and "load" in names:
                yield "torch.load under another name"
        elif isinstance(node, ast.Attribute | ast.Name):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            if is_object_collective(name):
                yield name
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            safe = any(
                keyword.arg == "weights_only" and getattr(keyword.value, "value", None) is True
                for keyword in node.keywords
            )
            if name == "torch.load" and not safe:
                yield f"{name} without weights_only=True"
            if name in ("eval", "exec", "__import__"):
                yield name
            if name.endswith(".broadcast") and name not in ("dist.broadcast", "torch.distributed.broadcast"):
                yield f"{name}, which pickles in Lightning"


def is_object_collective(name: str) -> bool:
    return name.endswith(("_object", "_object_list")) and name.startswith(
        ("all_gather", "gather", "broadcast", "scatter", "send", "recv", "all_reduce")
    )


def test_the_package_has_no_way_to_unpickle() -> None:
    assert len(SOURCES) > 100
    found = {path: list(complaints(path.read_text())) for path in SOURCES}
    assert not {str(path): names for path, names in found.items() if names}


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import pickle", "pickle"),
        ("from pickle import loads", "pickle"),
        ("from torch.distributed import broadcast_object_list as b", "broadcast_object_list"),
        ("dist.all_gather_object(everyones, mine)", "all_gather_object"),
        ("from torch import load", "torch.load under another name"),
        ("torch.load(file)", "torch.load without weights_only=True"),
        ("torch.load(file, weights_only=False)", "torch.load without weights_only=True"),
        ("self.strategy.broadcast(path)", "self.strategy.broadcast, which pickles in Lightning"),
    ],
)
def test_the_search_finds(code: str, found: str) -> None:
    assert found in list(complaints(code))


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def test_a_trap_in_a_rank_file_does_not_go_off(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    torch.save({"format": 1, "world_size": 1, "optimizers": [Trap(victim)]}, rank_files.path_of(tmp_path, 0))
    with pytest.raises((pickle.UnpicklingError, RuntimeError)):
        rank_files.read(tmp_path, 0, 1, 1)
    assert not victim.exists()
    torch.load(rank_files.path_of(tmp_path, 0), weights_only=False)
    assert victim.exists()  # it was one
