"""SignSGD and Signum against their formulas, written out with plain tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_signvr import SignSGD, Signum
from lightning_signvr.optimizers import SignOptimizer

STEPS = 30


def gradients(dtype: torch.dtype) -> list[Tensor]:
    """Multiples of 1/8, so that averages by halves are exact in every dtype; some are exactly zero."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(-8, 9, (5, 3), generator=generator).to(dtype) / 8 for _ in range(STEPS)]


def run(optimizer: SignOptimizer, weight: nn.Parameter, dtype: torch.dtype) -> Tensor:
    for gradient in gradients(dtype):
        weight.grad = gradient
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("maximize", [False, True])
def test_signsgd(dtype: torch.dtype, maximize: bool) -> None:
    weight = nn.Parameter(torch.linspace(-1, 1, 15).view(5, 3).to(dtype))
    expected = weight.detach().clone()
    for gradient in gradients(dtype):
        direction = -gradient if maximize else gradient
        expected.mul_(1 - 0.25 * 0.5).sub_(direction.sign() * 0.25)
    assert torch.equal(run(SignSGD([weight], 0.25, 0.5, maximize=maximize), weight, dtype), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("maximize", [False, True])
def test_signum(dtype: torch.dtype, maximize: bool) -> None:
    weight = nn.Parameter(torch.linspace(-1, 1, 15).view(5, 3).to(dtype))
    expected, average = weight.detach().clone(), torch.zeros(5, 3, dtype=dtype)
    for gradient in gradients(dtype):
        average = 0.5 * average + 0.5 * (-gradient if maximize else gradient)
        expected = (1 - 0.25 * 0.5) * expected - 0.25 * average.sign()
    optimizer = Signum([weight], 0.25, 0.5, 0.5, maximize=maximize)
    assert torch.equal(run(optimizer, weight, dtype), expected)
    kept = optimizer.state[weight]["momentum_buffer"]
    assert torch.equal(-kept if maximize else kept, average)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_signum_keeps_the_average_of_16_bit_parameters_in_float32(dtype: torch.dtype) -> None:
    weight = nn.Parameter(torch.zeros(1, dtype=dtype))
    optimizer = Signum([weight], lr=0.0, momentum=0.999)
    for _ in range(2000):  # in 16 bits the average would stop growing where its steps are rounded away
        weight.grad = torch.ones(1, dtype=dtype)
        optimizer.step()
    average = optimizer.state[weight]["momentum_buffer"]
    assert average.dtype == torch.float32
    assert average.item() == pytest.approx(1 - 0.999**2000, rel=1e-4)


def test_signum_without_momentum_is_signsgd() -> None:
    results = []
    for make in (lambda p: SignSGD(p, 0.1), lambda p: Signum(p, 0.1, momentum=0.0)):
        weight = nn.Parameter(torch.zeros(5, 3))
        results.append(run(make([weight]), weight, torch.float32))
    assert torch.equal(*results)


@pytest.mark.parametrize("make", [SignSGD, Signum])
def test_zero_gradients_do_not_move_a_parameter(make: Callable[..., SignOptimizer]) -> None:
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.tensor([0.0, -0.0, 1e-40])
    make([weight], lr=0.5).step()
    assert weight.tolist() == [1.0, 1.0, 0.5]


def test_signsgd_sits_on_the_median_of_the_data() -> None:
    """Fixture: f_i = (x - a_i)^2 / 2 with a = 1, 2, 10: the vote of three workers ends at the median."""
    weight = nn.Parameter(torch.tensor([5e-4], dtype=torch.float64))
    optimizer = SignSGD([weight], lr=1e-3)
    for _ in range(2500):
        weight.grad = torch.sign(weight.detach() - torch.tensor([1.0, 2.0, 10.0])).sum(0, keepdim=True)
        optimizer.step()
    assert weight.item() == pytest.approx(2.0, abs=1.1e-3)


def test_karimireddy_counterexample_drifts_the_wrong_way() -> None:
    """Fixture: f(x) = x / 4 on [-1, 1] with gradients 4 (one time in four) and -1: signSGD goes to +1."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = SignSGD([weight], lr=0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(1000):
        rare = torch.rand(1, generator=generator) < 0.25
        weight.grad = torch.where(rare, 4.0, -1.0)
        optimizer.step()
        weight.data.clamp_(-1, 1)
    assert weight.item() > 0.9
