"""MARS-Lion against its formula, its identity with SSVR, and the ways to give it a second gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_signvr import MajorityVote
from lightning_signvr.optimizers import SSVR
from lightning_signvr.optimizers.marslion import MARSLion
from tests.optimizers.problems import SIZE, gradient, loss_of, majority
from tests.strategies.helpers import Regression, batches, fit, flat, parameters_of, same_on_all
from tests.workers import run_workers

STEPS = 50
LR = 1 / 16
OPTIONS: list[dict[str, Any]] = [
    {"momentum": 0.5, "correction": 1.0, "clip": False},
    {"momentum": 0.75, "correction": 0.25, "weight_decay": 0.5},
    {"momentum": 0.75, "correction": 0.25, "previous": "last_batch"},
    {"momentum": 0.5, "correction": 0.5, "previous": "last_batch", "clip": False},
    {"momentum": 0.75, "correction": 0.0},
    {"momentum": 0.0},
    {"momentum": 0.5, "maximize": True},
]


def reference(workers: int, momentum: float, correction: float = 0.025, **options: Any) -> Tensor:
    """``c = g + gamma b / (1 - b) (g - g^-)``; ``m = b m + (1 - b) c / max(1, |c|)``; vote; step."""
    point = before = torch.zeros(SIZE, dtype=torch.float64)
    averages = [torch.zeros_like(point) for _ in range(workers)]
    last: list[Tensor | None] = [None] * workers
    sign = 1 if options.get("maximize") else -1
    for step in range(STEPS):
        for rank in range(workers):
            fresh = gradient(point, rank, step)
            if options.get("previous") != "last_batch":
                last[rank] = gradient(before, rank, step)
            change = 0.0 if last[rank] is None or step == 0 else fresh - last[rank]
            corrected = fresh + correction * (momentum / (1 - momentum)) * change
            if options.get("clip", True) and corrected.square().sum().sqrt() > 1:
                corrected = corrected / corrected.square().sum().sqrt()
            averages[rank] = momentum * averages[rank] + (1 - momentum) * corrected
            last[rank] = fresh
        before = point
        point = (1 - LR * options.get("weight_decay", 0.0)) * point + sign * LR * majority(averages)
    return point


def backward(optimizer: MARSLion | SSVR, loss: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss.backward()
    return loss


def train(rank: int, options: dict[str, Any], way: str = "closure") -> Tensor:
    weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimizer = MARSLion([weight], LR, vote=MajorityVote(ties="positive"), **options)
    for step in range(STEPS):
        if way == "closure":
            optimizer.step(lambda step=step: backward(optimizer, loss_of(weight, rank, step)))
        else:
            backward(optimizer, loss_of(weight, rank, step))
            with optimizer.at_previous_iterate():
                loss_of(weight, rank, step).backward()
            optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("way", ["closure", "at_previous_iterate"])
def test_one_worker_follows_the_formula_bit_for_bit(options: dict[str, Any], way: str) -> None:
    assert torch.equal(train(0, options, way), reference(1, **options))


def train_all(rank: int) -> list[Tensor]:
    return [train(rank, options) for options in OPTIONS[:4]]


def test_three_workers_follow_the_formula_bit_for_bit() -> None:
    expected = [reference(3, **options) for options in OPTIONS[:4]]
    for replica in run_workers(train_all, 3):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(replica, expected, strict=True))


def test_full_correction_without_clipping_is_ssvr_from_the_same_estimate() -> None:
    """``m_1 = (1 - b) g_1`` has the signs of SSVR's ``v_1 = g_1``; from ``m_1 = v_1`` on all is the same."""
    steps = 36  # each adds a binary digit to the averages: all of them are exact
    mine, theirs = (nn.Parameter(torch.zeros(SIZE, dtype=torch.float64)) for _ in range(2))
    mars = MARSLion([mine], LR, momentum=0.5, correction=1.0, clip=False)
    ssvr = SSVR([theirs], LR, beta=0.5)
    for step in range(steps):
        mars.step(lambda step=step: backward(mars, loss_of(mine, 0, step)))
        ssvr.step(lambda step=step: backward(ssvr, loss_of(theirs, 0, step)))
        if step == 0:
            assert torch.equal(mars.state[mine]["momentum_buffer"], 0.5 * gradient(torch.zeros(SIZE), 0, 0))
            mars.state[mine]["momentum_buffer"].copy_(ssvr.state[theirs]["estimate"])
        assert torch.equal(mars.state[mine]["momentum_buffer"], ssvr.state[theirs]["estimate"])
        assert torch.equal(mine, theirs)
    assert mars.state[mine]["momentum_buffer"].abs().max() > 0


def test_clipping_scales_each_tensor_by_its_own_norm() -> None:
    large, small = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = MARSLion([large, small], momentum=0.5)
    large.grad, small.grad = torch.tensor([3.0, -4.0]), torch.tensor([0.5, 0.25])
    optimizer.step()
    averages = [optimizer.state[weight]["momentum_buffer"] for weight in (large, small)]
    torch.testing.assert_close(averages[0], torch.tensor([0.3, -0.4]))
    assert averages[1].tolist() == [0.25, 0.125]
    assert large.grad.tolist() == [3.0, -4.0]


def test_last_batch_keeps_a_copy_of_the_uncorrected_gradient() -> None:
    options = {"momentum": 0.75, "correction": 0.25, "previous": "last_batch"}
    weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    weight.grad = torch.zeros_like(weight)  # reused memory, as under DDP
    optimizer = MARSLion([weight], LR, vote=MajorityVote(ties="positive"), **options)
    for step in range(STEPS):
        fresh = gradient(weight.detach(), 0, step)
        weight.grad.copy_(fresh)
        optimizer.step()
        assert torch.equal(weight.grad, fresh)
        weight.grad.fill_(99.0)
        assert torch.equal(optimizer.state[weight]["last_gradient"], fresh)
    assert torch.equal(weight, reference(1, **options))
    assert sorted(optimizer.state[weight]) == ["last_gradient", "momentum_buffer"]


def test_second_gradient_must_not_be_missing() -> None:
    weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimizer = MARSLion([weight], LR)
    weight.grad = gradient(weight.detach(), 0, 0)
    optimizer.step()  # the first step has no previous iterate
    weight.grad = gradient(weight.detach(), 0, 1)
    before = weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"MARSLion needs the gradients .* at 'previous'.*Pass a closure"):
        optimizer.step()
    assert torch.equal(weight.detach(), before)


@pytest.mark.parametrize("options", [{"correction": 0.0}, {"momentum": 0.0}, {"previous": "last_batch"}])
def test_no_second_gradient_where_it_would_not_count(options: dict[str, Any]) -> None:
    weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimizer = MARSLion([weight], LR, **options)
    for step in range(3):
        weight.grad = gradient(weight.detach(), 0, step)
        optimizer.step()
    assert "previous_iterate" not in optimizer.state[weight]


@pytest.mark.parametrize("previous", ["exact", "last_batch"])
def test_resumes_with_all_states(previous: str, tmp_path: Any) -> None:
    def steps(weight: nn.Parameter, optimizer: MARSLion, first: int) -> None:
        for step in range(first, first + 5):
            optimizer.step(lambda step=step: backward(optimizer, loss_of(weight, 0, step)))

    weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimizer = MARSLion([weight], LR, previous=previous)  # type: ignore[arg-type]
    steps(weight, optimizer, 0)
    torch.save([weight.detach(), optimizer.state_dict()], tmp_path / "state.pt")
    value, state = torch.load(tmp_path / "state.pt", weights_only=True)
    twin = nn.Parameter(value)
    twin_optimizer = MARSLion([twin], lr=1.0)
    twin_optimizer.load_state_dict(state)
    steps(weight, optimizer, 5)
    steps(twin, twin_optimizer, 5)
    assert torch.equal(weight, twin)


@pytest.mark.parametrize("previous", ["exact", "last_batch"])
def test_16_bit_parameters_have_a_float32_average(previous: str) -> None:
    """``258 - 1`` is no bfloat16 number: the correction must not be rounded to one."""
    weight = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optimizer = MARSLion([weight], 0.5, 0.5, correction=1.0, previous=previous, clip=False)  # type: ignore[arg-type]
    for here in (258.0, 1.0):
        weight.grad = torch.full_like(weight, here)
        with optimizer.at_previous_iterate():
            weight.grad = torch.full_like(weight, 258.0)
        optimizer.step()
    state = optimizer.state[weight]
    assert state["momentum_buffer"].dtype == torch.float32
    assert state["momentum_buffer"].item() == 0.5 * (0.5 * 258) + 0.5 * (1 - 257)
    assert state["previous_iterate" if previous == "exact" else "last_gradient"].dtype == torch.bfloat16
    assert weight.item() == 0.0


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("momentum", 1.0, ValueError),
        ("momentum", -0.1, ValueError),
        ("momentum", float("nan"), ValueError),
        ("momentum", "slow", TypeError),
        ("correction", -0.1, ValueError),
        ("correction", 1.5, ValueError),
        ("previous", "lastbatch", ValueError),
        ("clip", 1.0, TypeError),
        ("lr", -1.0, ValueError),
    ],
)
def test_bad_arguments_are_named(name: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=name):
        MARSLion([nn.Parameter(torch.zeros(1))], **{name: value})  # type: ignore[arg-type]


def marslion(parameters: Any) -> MARSLion:
    return MARSLion(parameters, lr=0.02, correction=0.5, vote=MajorityVote(ties="positive"))


class CountsCalls(Regression):
    calls = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.calls += 1
        return super().training_step(batch, batch_idx)


def train_under_lightning(rank: int) -> dict[str, Any]:
    module, data = CountsCalls(marslion), batches(0, 80)[rank::2]
    with torch.no_grad():
        losses = [float(Regression.training_step(module, data[0], 0))]
    trainer = fit(module, data)
    with torch.no_grad():
        losses.append(float(Regression.training_step(module, data[0], 0)))
    [optimizer] = trainer.optimizers
    states = list(optimizer.state.values())
    moved = flat(p.detach() - s["previous_iterate"] for p, s in optimizer.state.items())
    return {
        "parameters": parameters_of(module),
        "average": flat(state["momentum_buffer"] for state in states),
        "moved": moved,
        "losses": losses,
        "calls": module.calls,
    }


def test_lightning_evaluates_the_previous_iterate_too() -> None:
    results = run_workers(train_under_lightning, 2)
    assert same_on_all(result["parameters"] for result in results)
    assert not same_on_all(result["average"] for result in results)
    for result in results:
        assert result["calls"] == 2 * 40 - 1  # the first step has no previous iterate
        assert result["losses"][1] < 0.5 * result["losses"][0]
        np.testing.assert_allclose(np.abs(result["moved"]), 0.02, rtol=1e-4)
