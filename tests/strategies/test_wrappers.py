"""Users call methods of the wrappers that Lightning and Fabric put around an optimizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch.core.optimizer import LightningOptimizer

from lightning_signvr.optimizers import SSVR
from lightning_signvr.replay import Replay


def in_lightning(optimizer: SSVR) -> Any:
    return LightningOptimizer(optimizer)


def in_fabric(optimizer: SSVR) -> Any:
    return Fabric(accelerator="cpu", devices=1).setup_optimizers(optimizer)


@pytest.mark.parametrize("wrapped", [in_lightning, in_fabric])
@pytest.mark.parametrize("loaded", [False, True])
def test_gradients_at_anchors_are_shared(wrapped: Any, loaded: bool) -> None:
    """A step that a GradScaler skipped leaves gradients behind, which zero_grad must drop."""
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = SSVR([weight], lr=0.1)
    wrapper = wrapped(optimizer)
    weight.grad = torch.ones(2)
    optimizer.step()
    if loaded:
        optimizer.load_state_dict(optimizer.state_dict())
    for _ in range(2):
        wrapper.zero_grad()
        assert optimizer.anchor_gradients() == []
        Replay(wrapper).backward(lambda: (3 * weight).sum())
        [gradient] = optimizer.anchor_gradients()
        assert gradient.tolist() == [3.0, 3.0]
    with optimizer.at_previous_iterate(), pytest.raises(RuntimeError, match="inside a block"):
        wrapper.at_previous_iterate().__enter__()
