"""A module imports from its own layer and from lower ones."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lightning_signvr"
LAYERS = {
    "signs": 1,
    "voting": 2,
    "estimators": 3,
    "proximal": 3,
    "optimizers": 4,
    "acting_together": 5,
    "amp": 5,
    "checkpoint_files": 5,
    "checkpoint_folders": 5,
    "connecting": 5,
    "local_gradients": 5,
    "metrics": 5,
    "module_state": 5,
    "replay": 5,
    "sharded_checkpoints": 5,
    "accelerate": 6,
    "fabric": 6,
    "strategies": 6,
    "transformers": 6,
    "callbacks": 7,
    "cli": 7,
    "planner": 7,
    "report": 7,
}
MODULES = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


def layer_of(parts: tuple[str, ...]) -> int:
    return LAYERS[parts[0].removesuffix(".py")]


def imported_layers(path: Path) -> list[int]:
    """Layers of the package's modules that a file imports; imports are absolute throughout."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.append(node.module or "")
        elif isinstance(node, ast.Import):
            names.extend(alias.name for alias in node.names)
    ours = [name.split(".")[1:] for name in names if name.split(".")[0] == "lightning_signvr"]
    assert all(ours), f"{path}: imports the package itself"
    return [LAYERS[parts[0]] for parts in ours]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    own = layer_of(path.relative_to(PACKAGE).parts)
    assert all(layer <= own for layer in imported_layers(path))


def test_every_layer_is_there() -> None:
    assert {layer_of(path.relative_to(PACKAGE).parts) for path in MODULES} == set(LAYERS.values())
