"""The names of the strategies, the same in every namespace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

REGISTERED_NAMES: Mapping[str, str] = {
    "sign_vote": "popen",
    "sign_vote_spawn": "spawn",
    "sign_vote_fork": "fork",
    "sign_vote_notebook": "fork",
}
"""Name and how it starts processes."""


def register(strategy: type, registry: Any) -> None:
    """Enter ``strategy`` into a registry of Lightning or Fabric, where it is not there yet."""
    for name, start_method in REGISTERED_NAMES.items():
        if name not in registry:
            registry.register(
                name,
                strategy,
                description=f"Majority vote of signs, 1 bit per parameter, started by {start_method!r}",
                start_method=start_method,
            )
