"""A model in DDP whose gradients stay each worker's own: nothing of them is sent."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

from lightning_signvr import SignSGD, keep_gradients_local
from lightning_signvr.amp import SharedGradScaler
from tests.strategies.helpers import LR, flat, parameters_of, same_on_all
from tests.workers import run_workers

OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "bucket views": {"gradient_as_bucket_view": True},
    "unused parameters": {"find_unused_parameters": True},
    "small buckets": {"bucket_cap_mb": 1e-4},
}
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
STEPS, MICROBATCHES = 3, 2  # buckets are built anew after the first step


class Branches(nn.Module):
    """Rank 0 alone uses one of two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.common, self.of_rank_0 = nn.Linear(4, 8), nn.Linear(8, 8)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.common(inputs))
        return hidden if dist.get_rank() else self.of_rank_0(hidden)


def backward(model: nn.Module, rank: int, dtype: torch.dtype | None) -> list[Tensor]:
    """The gradients after some steps' microbatches, unscaled; parameters do not move."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = SharedGradScaler("cpu", init_scale=8.0, enabled=dtype is torch.float16)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(STEPS):
        optimizer.zero_grad()
        for part in range(MICROBATCHES):
            inputs = torch.randn(8, 4, generator=generator)
            accumulates = isinstance(model, DistributedDataParallel) and part < MICROBATCHES - 1
            with (
                model.no_sync() if accumulates else nullcontext(),
                torch.autocast("cpu", dtype) if dtype else nullcontext(),
            ):
                loss = model(inputs).square().mean()
                scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def gradients(rank: int) -> dict[Any, tuple[np.ndarray, np.ndarray]]:
    results = {}
    for precision, dtype in PRECISIONS.items():
        expected = flat(backward(make_net(), rank, dtype))
        for name, options in OPTIONS.items():
            model = keep_gradients_local(DistributedDataParallel(make_net(), **options))
            results[name, precision] = flat(backward(model, rank, dtype)), expected
    return results


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def collectives(rank: int) -> dict[str, list[list[int]]]:
    """Sizes of the tensors that were reduced in a step, with and without the hook."""
    results = {}
    for name in ("plain DDP", *OPTIONS):
        model = DistributedDataParallel(make_net(), **OPTIONS.get(name, {}))
        if name != "plain DDP":
            keep_gradients_local(model)
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
            backward(model, rank, None)
        results[name] = [event.input_shapes for event in profiler.events() if event.name == "gloo:all_reduce"]
    return results


def train_with_an_unused_layer(rank: int) -> dict[str, Any]:
    net = Branches()
    start = parameters_of(net.of_rank_0)
    model = keep_gradients_local(DistributedDataParallel(net, find_unused_parameters=True))
    optimizer = SignSGD(model.parameters(), lr=LR)
    model(torch.ones(2, 4)).square().mean().backward()
    own = flat(p.grad for p in net.of_rank_0.parameters())
    optimizer.step()
    return {"gradient": own, "moved": parameters_of(net.of_rank_0) - start, "all": parameters_of(net)}


def refusals(rank: int) -> list[str]:
    hooked = keep_gradients_local(DistributedDataParallel(make_net()))
    messages = []
    for model in (make_net(), hooked):
        try:
            keep_gradients_local(model)  # type: ignore[arg-type]
        except (TypeError, RuntimeError) as error:
            messages.append(f"{type(error).__name__}: {error}")
    return messages


def play(rank: int) -> dict[str, Any]:
    return {
        "gradients": gradients(rank),
        "collectives": collectives(rank),
        "unused": train_with_an_unused_layer(rank),
        "refusals": refusals(rank),
    }


@pytest.fixture(scope="module")
def played() -> list[dict[str, Any]]:
    return run_workers(play, 2)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("options", OPTIONS)
def test_gradients_are_those_of_the_bare_model(options: str, precision: str, played: Any) -> None:
    for worker in played:
        np.testing.assert_array_equal(*worker["gradients"][options, precision])
    assert not same_on_all(worker["gradients"][options, precision][0] for worker in played)


def test_nothing_is_reduced(played: Any) -> None:
    for worker in played:
        sent = worker["collectives"]
        assert len(sent["plain DDP"]) == STEPS  # so they are seen where there are some
        assert sent["defaults"] == sent["bucket views"] == sent["small buckets"] == []
        assert len(sent["unused parameters"]) <= STEPS  # which tensors were used, not their gradients


def test_a_parameter_that_others_use_moves_as_they_vote(played: Any) -> None:
    [first, second] = (worker["unused"] for worker in played)
    assert not second["gradient"].any()
    np.testing.assert_allclose(first["moved"], -LR * np.sign(first["gradient"]), atol=1e-7)
    assert first["moved"].any()
    assert same_on_all([first["all"], second["all"]])


def test_other_models_and_second_hooks_are_refused(played: Any) -> None:
    not_wrapped, hooked = played[0]["refusals"]
    assert not_wrapped.startswith("TypeError: model must be a DistributedDataParallel, got Sequential")
    assert hooked.startswith("RuntimeError: model has a communication hook already")
