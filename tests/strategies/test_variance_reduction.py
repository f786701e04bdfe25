"""SSVR under the strategy is its formula over all workers' pairs of gradients, to the last bit."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.checkpoint import checkpoint
from torchmetrics import MeanMetric

from lightning_signvr import MajorityVote
from lightning_signvr.optimizers import SSVR
from lightning_signvr.optimizers.random_state import RandomState
from tests.strategies.helpers import (
    LR,
    Batch,
    Regression,
    batches,
    fit,
    flat,
    float16,
    parameters_of,
)
from tests.workers import WorkerError, run_workers

STEPS, BETA, CLIP = 6, 0.25, 0.05
ACCUMULATE = (1, 3)
VARIANTS = ("plain", "clip", "reentrant", "nonreentrant", "compile", "manual")


def ssvr(parameters: Any) -> SSVR:
    return SSVR(parameters, LR, BETA, vote=MajorityVote(ties="positive"))


class Noisy(Regression):
    """Dropout, BatchNorm, a metric and a log in ``training_step``; every second pass would show."""

    def __init__(self, variant: str = "plain", rank: int = 0, accumulate: int = 1) -> None:
        torch.manual_seed(0)
        body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.4))
        super().__init__(ssvr, net=nn.Sequential(body, nn.Linear(6, 1)))
        self.variant, self.rank, self.accumulate = variant, rank, accumulate
        self.mean_loss = MeanMetric()
        self.automatic_optimization = variant != "manual"
        self.calls = 0
        if variant == "compile":
            self.net = torch.compile(self.net, backend="aot_eager")

    def forward(self, inputs: Tensor) -> Tensor:
        if "reentrant" not in self.variant:
            output: Tensor = self.net(inputs)
            return output
        hidden = checkpoint(self.net[0], inputs, use_reentrant=self.variant == "reentrant")
        output = self.net[1](hidden)
        return output

    def loss_of(self, batch: Batch) -> Tensor:
        return (self(batch[0].requires_grad_()) - batch[1]).pow(2).mean()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(1000 * self.rank + batch_idx)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        self.calls += 1
        if self.variant == "manual":
            self.step_manually(batch)
            return None
        parts = [batch.pop(), batch.pop()]  # changes the container that it was given
        loss = self.loss_of((parts[1], parts[0]))
        self.mean_loss(loss.detach())
        self.log("loss", loss, on_step=False, on_epoch=True, reduce_fx="sum", sync_dist=False)
        self.log("count", 1.0, on_step=False, on_epoch=True, reduce_fx="sum", sync_dist=False)
        return loss

    def step_manually(self, microbatches: list[Batch]) -> None:
        optimizer = self.optimizers()

        def closure() -> None:
            optimizer.zero_grad()
            for batch in microbatches:
                self.manual_backward(self.loss_of(batch) / len(microbatches))
                self.log("count", 1.0, on_step=False, on_epoch=True, reduce_fx="sum")

        optimizer.step(closure)


def data_for(variant: str, rank: int, accumulate: int) -> list[Any]:
    single = batches(rank, STEPS * accumulate)
    if variant == "manual":  # a microbatch is a part of the closure there
        return [single[k : k + accumulate] for k in range(0, len(single), accumulate)]
    return [list(batch) for batch in single]


def train(rank: int, variant: str, accumulate: int) -> dict[str, Any]:
    module = Noisy(variant, rank, accumulate)
    options = {} if variant == "manual" else {"accumulate_grad_batches": accumulate}
    if variant == "clip":
        options["gradient_clip_val"] = CLIP  # type: ignore[assignment]
    trainer = fit(module, data_for(variant, rank, accumulate), **options)
    assert trainer.global_step == STEPS
    norm = next(part for part in module.modules() if isinstance(part, nn.BatchNorm1d))
    return {
        "parameters": parameters_of(module),
        "estimate": flat(state["estimate"] for state in trainer.optimizers[0].state.values()),
        "tracked": int(norm.num_batches_tracked),
        "count": float(trainer.callback_metrics["count"]),
        "updates": module.mean_loss.update_count,
        "calls": module.calls,
    }


def gradients(module: Noisy, batch: Batch, accumulate: int) -> list[Tensor]:
    loss = module.loss_of(batch) / accumulate
    return list(torch.autograd.grad(loss, list(module.net.parameters())))


def simulate(workers: int, accumulate: int, clip: bool, manual: bool) -> list[dict[str, Any]]:
    """One process: a copy of the module at the previous iterate computes the second gradients."""
    module = Noisy()
    parameters = list(module.net.parameters())
    data = [batches(rank, STEPS * accumulate) for rank in range(workers)]
    estimates: list[list[Tensor]] = []
    previous: list[Tensor] = []
    for step in range(STEPS):
        for rank in range(workers):
            fresh, old = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
            for part in range(accumulate):
                number = step * accumulate + part
                if part == 0 or not manual:
                    torch.manual_seed(1000 * rank + (step if manual else number))
                before, twin = RandomState.capture(), copy.deepcopy(module)
                for total, gradient in zip(
                    fresh, gradients(module, data[rank][number], accumulate), strict=True
                ):
                    total += gradient
                if previous:
                    for p, value in zip(twin.net.parameters(), previous, strict=True):
                        p.data.copy_(value)
                    before.restore()
                    for total, gradient in zip(
                        old, gradients(twin, data[rank][number], accumulate), strict=True
                    ):
                        total += gradient
            if clip:
                for p, gradient in zip(parameters, fresh, strict=True):
                    p.grad = gradient
                coefficient = torch.clamp(CLIP / (clip_grad_norm_(parameters, CLIP) + 1e-6), max=1.0)
                for gradient in old:
                    gradient *= coefficient
            if not previous:
                estimates.append(fresh)
            else:
                trio = zip(estimates[rank], old, fresh, strict=True)
                estimates[rank] = [(v - o) * (1 - BETA) + g for v, o, g in trio]
        previous = [p.detach().clone() for p in parameters]
        for index, p in enumerate(parameters):
            signs = torch.stack([estimate[index].sign() for estimate in estimates])
            tied = (signs.sum(0) == 0) & signs.any(0)
            p.data.sub_(torch.where(tied, 1.0, signs.sum(0).sign()), alpha=LR)
    return [{"parameters": flat(parameters), "estimate": flat(estimate)} for estimate in estimates]


def cases(slow: bool, workers: int) -> list[tuple[str, int]]:
    """All combinations; compiling is slow, and is left to the slow tests but for two workers."""
    variants = [variant for variant in VARIANTS if (variant == "compile" and workers != 2) == slow]
    return [(variant, accumulate) for variant in variants for accumulate in ACCUMULATE]


def train_all(rank: int, slow: bool) -> dict[tuple[str, int], dict[str, Any]]:
    return {case: train(rank, *case) for case in cases(slow, dist.get_world_size())}


SLOW = [pytest.param(True, workers, marks=pytest.mark.slow, id=f"compile-{workers}") for workers in (1, 3)]


@pytest.mark.parametrize(("slow", "workers"), [(False, 1), (False, 2), (False, 3), *SLOW])
def test_equals_a_simulation_with_copies_of_the_model(slow: bool, workers: int) -> None:
    results = run_workers(train_all, workers, slow, timeout=100)
    for variant, accumulate in cases(slow, workers):
        expected = simulate(workers, accumulate, clip=variant == "clip", manual=variant == "manual")
        microbatches = STEPS * accumulate
        for rank, (result, simulated) in enumerate(zip(results, expected, strict=True)):
            case = f"{variant}, accumulate {accumulate}, rank {rank} of {workers}"
            got = result[variant, accumulate]
            for key in ("parameters", "estimate"):
                np.testing.assert_array_equal(got[key], simulated[key], err_msg=f"{key}: {case}")
            assert got["count"] == microbatches, case
            # torch's checkpointing runs the block, and so its BatchNorm, twice
            assert got["tracked"] == microbatches * (2 if "reentrant" in variant else 1), case
            if variant != "manual":
                assert got["updates"] == microbatches, case
                assert got["calls"] == 2 * microbatches - accumulate, case  # the first step has no anchor


def overflow(rank: int) -> tuple[np.ndarray, list[float], np.ndarray]:
    """float16 with an infinite loss on rank 1 alone, at the previous iterate alone, in step 3."""

    class Overflowing(Regression):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            there = self.trainer.strategy.in_replay
            return loss * float("inf") if there and rank == 1 and batch_idx == 3 else loss

        def on_train_batch_end(self, *_: Any) -> None:
            scales.append(self.trainer.precision_plugin.scaler.get_scale())

    scales: list[float] = []
    module = Overflowing(ssvr)
    trainer = fit(module, batches(rank, 6), **float16())
    [optimizer] = trainer.optimizers
    previous = flat(state["previous_iterate"] for state in optimizer.state.values())
    assert optimizer.param_groups[0]["step"] == 5
    return parameters_of(module), scales, previous


def test_overflow_at_the_anchor_of_one_rank_skips_the_step_on_all() -> None:
    (first, scales, previous), (second, *rest) = run_workers(overflow, 2)
    assert np.array_equal(first, second)
    assert scales == rest[0] == [8.0, 8.0, 8.0, 4.0, 4.0, 4.0]
    assert np.array_equal(previous, rest[1])
    np.testing.assert_allclose(np.abs(first - previous), LR, rtol=1e-4)  # one step apart, not two


def clip_by_value(rank: int) -> None:
    fit(Regression(ssvr), batches(rank, 3), gradient_clip_val=0.1, gradient_clip_algorithm="value")


def manual_without_closure(rank: int) -> None:
    class Forgetful(Regression):
        automatic_optimization = False

        def training_step(self, batch: Batch, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    fit(Forgetful(ssvr), batches(rank, 3))


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (clip_by_value, 'gradient_clip_algorithm="norm"'),
        (manual_without_closure, r"optimizer.step\(closure\)"),
    ],
)
def test_misuse_is_refused_with_the_remedy(misuse: Any, message: str) -> None:
    with pytest.raises(WorkerError, match=message):
        run_workers(misuse, 1)
