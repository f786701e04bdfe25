"""Layer 6: how Lightning hands gradients to the optimizers. Importing it registers the strategies.

``lightning.pytorch`` and ``pytorch_lightning`` are two copies of the same code, with two class trees
and two registries, and so are ``lightning.fabric`` and ``lightning_fabric``; the strategies are registered
in each that is installed.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec

_FOR_TRAINERS = {
    "lightning.pytorch": f"{__name__}.lightning_pytorch",
    "pytorch_lightning": f"{__name__}.pytorch_lightning",
}
_FOR_FABRIC = {
    "lightning.fabric": f"{__name__}.fabric_of_lightning",
    "lightning_fabric": f"{__name__}.fabric_alone",
}


def _register(modules: dict[str, str]) -> type:
    """Import the modules that register; the class of the namespace that the program imported first."""
    in_use = [name for name in sys.modules if name in modules]  # in the order of their import
    classes = {
        namespace: import_module(module).SignVoteStrategy
        for namespace, module in modules.items()
        if find_spec(namespace.split(".")[0]) is not None
    }
    chosen: type = classes[(in_use or list(classes))[0]]
    return chosen


SignVoteStrategy = _register(_FOR_TRAINERS)
"""For the Lightning namespace that was imported first, else for ``lightning.pytorch``; each
namespace's own is in :mod:`.lightning_pytorch` and :mod:`.pytorch_lightning`."""

FabricSignVoteStrategy = _register(_FOR_FABRIC)
"""The same for Fabric; each namespace's own is in :mod:`.fabric_of_lightning` and :mod:`.fabric_alone`."""

__all__ = ["FabricSignVoteStrategy", "SignVoteStrategy"]
