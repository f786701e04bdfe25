"""SSVR under Lightning's own strategies is its formula over pairs of gradients, to the last bit."""

from __future__ import annotations

import copy
import logging
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning_utilities.core import rank_zero
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from lightning_signvr import MajorityVote, Signum
from lightning_signvr.callbacks import SnapshotGradient
from lightning_signvr.callbacks.second_gradient import SecondGradient
from lightning_signvr.optimizers import SSVR, SSVRFS, DVRSign
from lightning_signvr.optimizers.random_state import RandomState
from lightning_signvr.strategies.replaying import ReplayMixin
from lightning_signvr.voting import LocalVote
from tests.strategies.helpers import (
    LR,
    Batch,
    Regression,
    batches,
    fit,
    flat,
    float16,
    loader,
    make_trainer,
    parameters_of,
    same_on_all,
    state_of,
)
from tests.workers import run_workers

STEPS, BETA, CLIP = 5, 0.25, 0.05
SKIPPED = 2  # the batch for which training_step returns None in the variant "skip"
SINGLE = [("plain", 1), ("plain", 3), ("clip", 1), ("skip", 1), ("manual", 1), ("manual", 3)]
DDP = [
    ("plain", 1),
    ("plain", 2),
    ("clip", 2),
    ("manual", 1),
    ("bucket views", 2),
    ("unused", 2),
    ("static", 1),
]


def ssvr(parameters: Any) -> SSVR:
    return SSVR(parameters, LR, BETA)


class Centered(nn.Module):
    """Subtracts what it has seen before: its output depends on its buffer also in training."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, inputs: Tensor) -> Tensor:
        centered = inputs - self.seen
        self.seen.lerp_(inputs.mean(0), 0.5)
        return centered


class Said(logging.Handler):
    """Collects what Lightning logs and warns, in ``lines``."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        rank_zero.log.addHandler(self)  # which namespace's depends on the order of imports
        warnings.showwarning = lambda message, *_: self.lines.append(str(message))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Noisy(Regression):
    """A buffer, BatchNorm, dropout, a metric and logs in ``training_step``: a second pass would show."""

    def __init__(self, rank: int = 0, variant: str = "plain") -> None:
        torch.manual_seed(0)
        body = [Centered(), nn.Linear(4, 6), nn.Tanh(), nn.BatchNorm1d(6), nn.Dropout(0.4), nn.Linear(6, 1)]
        super().__init__(ssvr, net=nn.Sequential(*body))
        self.rank, self.variant, self.automatic_optimization = rank, variant, variant != "manual"
        if variant == "unused":
            self.unused = nn.Linear(2, 2)
        self.mean_loss = MeanMetric()
        self.calls = 0

    def loss_of(self, batch: Batch) -> Tensor:
        return (self.net(batch[0]) - batch[1]).pow(2).mean()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(1000 * self.rank + batch_idx)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        self.calls += 1
        if not self.automatic_optimization:
            self.optimizers().step(lambda: self.accumulate(batch))
            return None
        if self.variant == "skip" and batch_idx == SKIPPED:
            return None
        loss = self.loss_of(batch)
        self.mean_loss(loss.detach())
        self.log("count", 1.0, on_step=False, on_epoch=True, reduce_fx="sum")
        return loss

    def accumulate(self, microbatches: list[Batch]) -> None:
        self.optimizers().zero_grad()
        for batch in microbatches:
            self.manual_backward(self.loss_of(batch) / len(microbatches))
            self.mean_loss(0.0)
            self.log("count", 1.0, on_step=False, on_epoch=True, reduce_fx="sum")


def data_of(rank: int, variant: str, accumulate: int) -> list[Any]:
    single = batches(rank, STEPS * accumulate)
    if variant == "manual":  # a microbatch is a part of the closure there
        return [single[k : k + accumulate] for k in range(0, len(single), accumulate)]
    return single


def train(rank: int, strategy: Any, variant: str, accumulate: int) -> dict[str, Any]:
    manual = variant == "manual"
    module = Noisy(rank, variant)
    options: dict[str, Any] = {} if manual else {"accumulate_grad_batches": accumulate}
    if variant == "clip":
        options["gradient_clip_val"] = CLIP
    if variant == "bucket views":
        strategy = DDPStrategy(gradient_as_bucket_view=True)
    if variant == "static":
        strategy = DDPStrategy(static_graph=True)
    if variant == "unused":
        strategy = "ddp_find_unused_parameters_true"
    data = data_of(rank, variant, accumulate)
    trainer = fit(module, data, strategy, callbacks=[SecondGradient()], **options)
    assert trainer.global_step == STEPS
    assert not isinstance(trainer.strategy, ReplayMixin)  # as it was before
    [optimizer] = trainer.optimizers
    assert optimizer.vote.traffic.bytes_sent == 0
    return {
        "parameters": parameters_of(module.net),
        "estimate": flat(state["estimate"] for state in optimizer.state.values() if "estimate" in state),
        "tracked": int(module.net[3].num_batches_tracked),
        "count": float(trainer.callback_metrics["count"]),
        "updates": module.mean_loss.update_count,
        "calls": module.calls,
    }


def gradients(module: Noisy, batch: Batch, accumulate: int) -> list[Tensor]:
    return list(torch.autograd.grad(module.loss_of(batch) / accumulate, list(module.net.parameters())))


def simulate(workers: int, variant: str, accumulate: int) -> dict[str, Any]:
    """One process: copies of the module at the previous iterate compute the second gradients."""
    manual = variant == "manual"
    replicas = [Noisy() for _ in range(workers)]
    parameters = list(replicas[0].net.parameters())
    data = [batches(rank, STEPS * accumulate) for rank in range(workers)]
    estimate: list[Tensor] = []
    previous: list[Tensor] = []
    for step in range(STEPS):
        if variant == "skip" and step == SKIPPED:
            previous = [p.detach().clone() for p in parameters]
            continue
        buffers = [buffer.clone() for buffer in replicas[0].net.buffers()]
        fresh, old = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
        for rank, module in enumerate(replicas):
            if not manual:  # as DDP does before a step
                for buffer, value in zip(module.net.buffers(), buffers, strict=True):
                    buffer.copy_(value)
            mine = [[torch.zeros_like(p) for p in fresh] for _ in range(2)]
            for number in range(step * accumulate, (step + 1) * accumulate):
                if not manual or number == step * accumulate:
                    torch.manual_seed(1000 * rank + (step if manual else number))
                before, twin = RandomState.capture(), copy.deepcopy(module)
                torch._foreach_add_(mine[0], gradients(module, data[rank][number], accumulate))
                if previous:
                    for p, value in zip(twin.net.parameters(), previous, strict=True):
                        p.data.copy_(value)
                    before.restore()
                    torch._foreach_add_(mine[1], gradients(twin, data[rank][number], accumulate))
            for total, part in zip([*fresh, *old], [*mine[0], *mine[1]], strict=True):
                total += part / workers
        if variant == "clip":
            for p, gradient in zip(parameters, fresh, strict=True):
                p.grad = gradient
            coefficient = torch.clamp(CLIP / (clip_grad_norm_(parameters, CLIP) + 1e-6), max=1.0)
            for gradient in old:
                gradient *= coefficient
        if not previous:
            estimate = fresh
        else:
            estimate = [(v - o) * (1 - BETA) + g for v, o, g in zip(estimate, old, fresh, strict=True)]
        previous = [p.detach().clone() for p in parameters]
        for module in replicas:
            for p, value in zip(module.net.parameters(), estimate, strict=True):
                p.data.sub_(value.sign(), alpha=LR)
    return {"parameters": flat(parameters), "estimate": flat(estimate)}


def train_all(rank: int, strategy: str, cases: list[tuple[str, int]]) -> list[dict[str, Any]]:
    return [train(rank, strategy, *case) for case in cases]


@pytest.mark.parametrize(("strategy", "workers", "cases"), [("auto", 1, SINGLE), ("ddp", 2, DDP)])
def test_equals_a_simulation_with_copies_of_the_model(strategy: str, workers: int, cases: Any) -> None:
    results = run_workers(train_all, workers, strategy, cases)
    for number, (variant, accumulate) in enumerate(cases):
        expected = simulate(workers, variant, accumulate)
        skipped = int(variant == "skip")
        microbatches = STEPS * accumulate - skipped
        for rank in range(workers):
            got, case = results[rank][number], f"{variant}, accumulate {accumulate}, rank {rank}"
            for key in ("parameters", "estimate"):
                np.testing.assert_array_equal(got[key], expected[key], err_msg=f"{key}: {case}")
            assert got["tracked"] == got["count"] == got["updates"] == microbatches, case
            if variant != "manual":
                # the first step has no anchor
                assert got["calls"] == 2 * microbatches - accumulate + skipped, case


def methods() -> dict[str, Any]:
    """What makes an optimizer, by the name of the case."""
    return {
        "DVRSign": lambda p: DVRSign(p, lr=LR, beta=BETA),
        "SSVRFS": lambda p: SSVRFS(p, lr=LR, beta=BETA, period=2),
        "own vote": lambda p: SSVR(p, lr=LR, beta=BETA, vote=MajorityVote(ties="positive")),
        "float32": ssvr,
        "float16": ssvr,
    }


def fit_like_data(rank: int, strategy: str) -> dict[str, tuple[np.ndarray, np.ndarray, list[str]]]:
    """Parameters, state and log, from the same data on all workers."""
    inputs = torch.randn(22, 4, generator=torch.Generator().manual_seed(3))
    data = DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), batch_size=4)
    results = {}
    for name, make in methods().items():
        module, said = Regression(make), Said()
        callbacks = [SecondGradient(), SnapshotGradient()] if name == "SSVRFS" else [SecondGradient()]
        options = float16() if name == "float16" else {}
        trainer = make_trainer(strategy, callbacks=callbacks, max_epochs=2, **options)
        trainer.fit(module, data)
        [optimizer] = trainer.optimizers
        assert isinstance(optimizer.vote, LocalVote) == (strategy == "ddp" and name != "own vote")
        lines = [line for line in said.lines if "DDP averages" in line]
        results[name] = parameters_of(module), state_of(optimizer), lines
    return results


def test_workers_with_the_same_data_are_as_one() -> None:
    [alone] = run_workers(fit_like_data, 1, "auto")
    first, second = run_workers(fit_like_data, 2, "ddp")
    for name in methods():
        assert same_on_all(result[name][0] for result in (alone, first, second)), name
        assert same_on_all(result[name][1] for result in (alone, first, second)), name
        assert alone[name][2] == second[name][2] == []
        assert len(first[name][2]) == (name != "own vote"), name  # said once, where the vote was replaced
    # a gradient that was not unscaled would be 8 times as large
    np.testing.assert_allclose(alone["float16"][1], alone["float32"][1], rtol=0.05, atol=0.02)


def overflow(rank: int) -> tuple[np.ndarray, int]:
    """An infinite loss on rank 1 alone, at the previous iterate alone, in one step."""

    class Overflowing(Regression):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            there = self.trainer.strategy.in_replay
            return loss * float("inf") if there and rank == 1 and batch_idx == 2 else loss

    module = Overflowing(ssvr)
    trainer = fit(module, batches(rank, 4), "ddp", callbacks=[SecondGradient()], **float16())
    return parameters_of(module), trainer.optimizers[0].param_groups[0]["step"]


def test_overflow_at_the_anchor_of_one_rank_skips_the_step_on_all() -> None:
    (first, steps), (second, others) = run_workers(overflow, 2)
    assert steps == others == 3
    assert np.array_equal(first, second)


class Local:
    """Comes before Lightning's class."""


class LocalStrategy(Local, DDPStrategy):
    pass


def words(rank: int) -> dict[str, list[str]]:
    """What is said and raised where the callback is of no use."""
    by_value: dict[str, Any] = {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}
    hook = DDPStrategy(ddp_comm_hook=allreduce_hook)
    cases: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "sign_vote": ("sign_vote", SSVR, {}),
        "one gradient": ("auto", Signum, {}),
        "sharded": (ModelParallelStrategy(), SSVR, {}),
        "other base": (LocalStrategy(), SSVR, {}),
        "by value": ("auto", SSVR, by_value),
        "hook": (hook, SSVR, {}),
    }
    results = {}
    for name, (strategy, optimizer, options) in cases.items():
        said = Said()
        module = Regression(partial(optimizer, lr=LR))
        trainer = make_trainer(strategy, callbacks=[SecondGradient()], **options)
        try:
            trainer.fit(module, loader(batches(rank, 2)))
            said.lines.append(f"{trainer.optimizers[0].vote!r}")
        except (RuntimeError, ValueError) as error:
            said.lines.append(str(error))
        assert isinstance(trainer.strategy, ReplayMixin) == (name == "sign_vote")  # as it was before
        results[name] = said.lines
    return results


def test_words() -> None:
    [said] = run_workers(words, 1)
    assert any(line.startswith("MajorityVote(") for line in said["sign_vote"])
    for name, words_of_one in {
        "sign_vote": "SignVoteStrategy computes all gradients itself",
        "one gradient": "Signum needs one gradient",
        "sharded": 'got ModelParallelStrategy: use Trainer(strategy="sign_vote")',
        "other base": "class ReplayingLocalStrategy(ReplayMixin, LocalStrategy)",
        "by value": 'gradient_clip_algorithm="norm"',
        "hook": "MajorityVote(ties=",  # a hook may leave the gradients different
    }.items():
        assert [words_of_one in line for line in said[name]].count(True) == 1, (name, said[name])
