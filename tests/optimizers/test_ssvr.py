"""SSVR against its formula, its identities, and the ways to give it a second gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_signvr import MajorityVote, SignSGD, Signum
from lightning_signvr.optimizers import SSVR
from tests.optimizers.problems import SIZE, gradient, loss_of, majority
from tests.workers import run_workers

STEPS = 50
LR, BETA = 1 / 16, 0.5  # powers of two keep every number exact


def reference(workers: int, weight_decay: float = 0.0, **options: Any) -> Tensor:
    """``v = (1 - beta) v + beta g + correction (1 - beta) (g - g^-)``, first ``v = g``; vote; step."""
    correction, steps = options.get("correction", 1.0), options.get("correction_steps")
    point = previous = torch.zeros(SIZE, dtype=torch.float64)
    estimates: list[Tensor] = []
    for step in range(STEPS):
        scale = correction * (max(0.0, 1 - step / steps) if steps else 1)
        for rank in range(workers):
            fresh, old = gradient(point, rank, step), gradient(previous, rank, step)
            if step == 0:
                estimates.append(fresh)
            else:
                tail = (1 - BETA) * estimates[rank] + scale * (1 - BETA) * (fresh - old)
                estimates[rank] = tail + BETA * fresh
        previous, point = point, (1 - LR * weight_decay) * point - LR * majority(estimates)
    return point


def train(rank: int, options: dict[str, Any], way: str = "closure") -> Tensor:
    weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimizer = SSVR([weight], LR, BETA, vote=MajorityVote(ties="positive"), **options)
    for step in range(STEPS):

        def closure(step: int = step) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(weight, rank, step)
            loss.backward()
            return loss

        if way == "closure":
            optimizer.step(closure)
        else:
            closure()
            with optimizer.at_previous_iterate():
                loss_of(weight, rank, step).backward()
            optimizer.step()
    return weight.detach()


OPTIONS: list[dict[str, Any]] = [
    {},
    {"correction": 0.0},
    {"correction": 0.25},
    {"correction": 0.5, "correction_steps": 32},
    {"weight_decay": 0.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("way", ["closure", "at_previous_iterate"])
def test_one_worker_follows_the_formula_bit_for_bit(options: dict[str, Any], way: str) -> None:
    assert torch.equal(train(0, options, way), reference(1, **options))


def train_all(rank: int) -> list[Tensor]:
    return [train(rank, options) for options in OPTIONS]


def test_three_workers_follow_the_formula_bit_for_bit() -> None:
    expected = [reference(3, **options) for options in OPTIONS]
    for replica in run_workers(train_all, 3):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(replica, expected, strict=True))


def test_beta_one_is_signsgd() -> None:
    weights = []
    for make in (lambda p: SSVR(p, LR, beta=1.0), lambda p: SignSGD(p, LR)):
        weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
        optimizer = make([weight])
        for step in range(STEPS):
            weight.grad = gradient(weight.detach(), 0, step)
            optimizer.step()  # with beta = 1 no second gradient is needed
        weights.append(weight.detach())
    assert torch.equal(*weights)


def test_correction_zero_is_signum_from_the_first_gradient() -> None:
    ours, theirs = (nn.Parameter(torch.zeros(SIZE, dtype=torch.float64)) for _ in range(2))
    ssvr = SSVR([ours], LR, BETA, correction=0.0)
    signum = Signum([theirs], LR, 1 - BETA)
    signum.state[theirs]["momentum_buffer"] = gradient(torch.zeros(SIZE), 0, 0)
    for step in range(STEPS):
        ours.grad, theirs.grad = gradient(ours.detach(), 0, step), gradient(theirs.detach(), 0, step)
        ssvr.step()
        signum.step()
    assert torch.equal(ours, theirs)
    assert "previous_iterate" not in ssvr.state[ours]


@pytest.mark.parametrize("beta", [0.25, 0.5, 1.0])
def test_without_noise_the_estimate_is_the_gradient(beta: float) -> None:
    """By induction ``v_t = grad f(x_t)`` for every beta: arXiv 2609.18656, appendix A."""
    weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimizer = SSVR([weight], LR, beta)
    for _ in range(STEPS):
        point = weight.detach().clone()
        optimizer.step(lambda: _backward(optimizer, loss_of(weight, 0, 0)))
        assert torch.equal(optimizer.state[weight]["estimate"], gradient(point, 0, 0))


def _backward(optimizer: SSVR, loss: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss.backward()
    return loss


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_estimate_of_bounded_gradients_is_bounded(beta: float) -> None:
    """``|g| <= G`` everywhere implies ``|v| <= (2 - beta) / beta G``; alternating signs come close."""
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = SSVR([weight], 0.0, beta)
    largest = 0.0
    for _ in range(300):
        weight.grad = torch.ones(1, dtype=torch.float64)
        with optimizer.at_previous_iterate():
            weight.grad = -torch.ones(1, dtype=torch.float64)
        optimizer.step()
        largest = max(largest, optimizer.state[weight]["estimate"].item())
    assert 0.99 * (2 - beta) / beta < largest <= (2 - beta) / beta * (1 + 1e-12)


def test_last_batch_uses_the_gradient_of_the_last_step_by_value() -> None:
    weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimizer = SSVR([weight], LR, BETA, correction=0.25, previous="last_batch")
    weight.grad = torch.zeros(SIZE, dtype=torch.float64)  # reused memory, as under DDP
    point, estimate, last = weight.detach().clone(), None, None
    for step in range(STEPS):
        fresh = gradient(point, 0, step)
        weight.grad.copy_(fresh)
        optimizer.step()
        if estimate is None or last is None:
            estimate = fresh
        else:
            estimate = (1 - BETA) * estimate + BETA * fresh + 0.25 * (1 - BETA) * (fresh - last)
        last = fresh
        point = point - LR * estimate.sign()
        assert torch.equal(weight.detach(), point)
    assert "previous_iterate" not in optimizer.state[weight]


def test_second_gradient_must_not_be_missing() -> None:
    weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimizer = SSVR([weight], LR)
    weight.grad = gradient(weight.detach(), 0, 0)
    optimizer.step()  # the first step has no previous iterate
    weight.grad = gradient(weight.detach(), 0, 1)
    before = weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"SSVR needs the gradients .* at 'previous'.*Pass a closure"):
        optimizer.step()
    assert torch.equal(weight.detach(), before)
    with (
        pytest.raises(ValueError, match="name must be one of 'previous', got 'snapshot'"),
        optimizer.at("snapshot"),
    ):
        pass


def test_accumulated_microbatches_are_one_batch() -> None:
    results = []
    for parts in (1, 3):
        weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
        optimizer = SSVR([weight], LR, BETA)
        for step in range(STEPS):
            optimizer.zero_grad()
            if parts == 1:
                sum(loss_of(weight, 0, 3 * step + k) for k in range(3)).backward()
                with optimizer.at_previous_iterate():
                    sum(loss_of(weight, 0, 3 * step + k) for k in range(3)).backward()
            else:
                for k in range(3):
                    loss_of(weight, 0, 3 * step + k).backward()
                    with optimizer.at_previous_iterate():
                        loss_of(weight, 0, 3 * step + k).backward()
            optimizer.step()
        results.append(weight.detach())
    assert torch.equal(*results)


def test_the_anchor_block_leaves_no_trace_even_when_it_fails() -> None:
    weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimizer = SSVR([weight], LR)
    optimizer.step(lambda: _backward(optimizer, loss_of(weight, 0, 0)))
    optimizer.zero_grad()
    loss_of(weight, 0, 1).backward()
    here, its_gradient = weight.detach().clone(), weight.grad

    def fail_there() -> None:
        with optimizer.at_previous_iterate():
            assert torch.equal(weight.detach(), torch.zeros(SIZE, dtype=torch.float64))
            raise KeyError("in the forward pass")

    with pytest.raises(KeyError):
        fail_there()
    assert torch.equal(weight.detach(), here)
    assert weight.grad is its_gradient
    with pytest.raises(RuntimeError, match="missing"):
        optimizer.step()


def test_closure_draws_the_same_dropout_masks() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.Dropout(0.5), nn.Linear(32, 1))
    inputs = torch.randn(16, 6)
    optimizer = SSVR(model.parameters(), lr=0.0)  # the previous iterate is the current one
    masks = []
    model[1].register_forward_hook(lambda _, __, output: masks.append(output != 0))
    for _ in range(3):
        optimizer.step(lambda: _backward(optimizer, model(inputs).square().mean()))
    first, *pairs = masks
    for here, there in zip(pairs[::2], pairs[1::2], strict=True):
        assert torch.equal(here, there)
    assert not torch.equal(first, pairs[0])


def test_resumes_with_both_states(tmp_path: Any) -> None:
    def steps(weight: nn.Parameter, optimizer: SSVR, first: int) -> None:
        for step in range(first, first + 5):
            optimizer.step(lambda step=step: _backward(optimizer, loss_of(weight, 0, step)))

    weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimizer = SSVR([weight], LR)
    steps(weight, optimizer, 0)
    torch.save([weight.detach(), optimizer.state_dict()], tmp_path / "state.pt")
    value, state = torch.load(tmp_path / "state.pt", weights_only=True)
    twin = nn.Parameter(value)
    twin_optimizer = SSVR([twin], lr=1.0)
    twin_optimizer.load_state_dict(state)
    steps(weight, optimizer, 5)
    steps(twin, twin_optimizer, 5)
    assert torch.equal(weight, twin)


def test_16_bit_parameters_have_a_float32_estimate() -> None:
    weight = nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    optimizer = SSVR([weight], lr=0.5)
    for _ in range(2):
        optimizer.step(lambda: _backward(optimizer, (weight - 3).square().sum()))
    assert optimizer.state[weight]["estimate"].dtype == torch.float32
    assert optimizer.state[weight]["previous_iterate"].dtype == torch.bfloat16
    assert weight.tolist() == [1.0] * 4


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("beta", 0.0, ValueError),
        ("beta", 1.1, ValueError),
        ("beta", float("nan"), ValueError),
        ("beta", "small", TypeError),
        ("correction", -0.1, ValueError),
        ("correction", 1.5, ValueError),
        ("correction_steps", 0, ValueError),
        ("correction_steps", 1.5, TypeError),
        ("previous", "lastbatch", ValueError),
        ("lr", -1.0, ValueError),
    ],
)
def test_bad_arguments_are_named(name: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=name):
        SSVR([nn.Parameter(torch.zeros(1))], **{name: value})  # type: ignore[arg-type]
