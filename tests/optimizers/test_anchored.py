"""Blocks at an anchor: what they collect, and what they put back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_signvr.optimizers import SSVR
from lightning_signvr.optimizers.exchange import BLOCK, exchange_
from tests.optimizers.problems import SIZE, gradient, loss_of
from tests.workers import run_workers

LR = 1 / 16


def stepped(mode: Any = "copy") -> tuple[nn.Parameter, SSVR]:
    """A parameter that has moved once, from 0 to -LR."""
    weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimizer = SSVR([weight], LR, previous_iterate=mode)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    optimizer.zero_grad()
    return weight, optimizer


def test_gradients_collect_in_place() -> None:
    weight, optimizer = stepped()
    for number in range(3):
        with optimizer.at_previous_iterate():
            collected = optimizer.anchor_gradients()
            assert collected == []  # they are in .grad, and nowhere else
            assert (weight.grad is None) == (number == 0)
            loss_of(weight, 0, number).backward()
            inside = weight.grad
            assert inside is not None
        assert weight.grad is None
        [kept] = optimizer.anchor_gradients()
        assert kept.data_ptr() == inside.data_ptr()
    expected = sum(gradient(torch.zeros(SIZE), 0, number) for number in range(3))
    assert torch.equal(kept, expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_inside_drops_what_was_collected_there(set_to_none: bool) -> None:
    weight, optimizer = stepped()
    loss_of(weight, 0, 7).backward()
    here = weight.grad
    assert here is not None
    value = here.clone()
    for number in range(3):
        with optimizer.at_previous_iterate():
            optimizer.zero_grad(set_to_none)
            loss_of(weight, 0, number).backward()
    [kept] = optimizer.anchor_gradients()
    assert torch.equal(kept, gradient(torch.zeros(SIZE), 0, 2))
    assert weight.grad is here
    assert torch.equal(here, value)
    with optimizer.at_previous_iterate():
        optimizer.zero_grad(set_to_none)
    if set_to_none:
        with pytest.raises(RuntimeError, match="missing"):
            optimizer.step()
    else:
        assert optimizer.anchor_gradients()[0].count_nonzero() == 0
        optimizer.step()


def test_a_failure_in_a_later_microbatch_is_not_forgotten() -> None:
    weight, optimizer = stepped()

    def fail(number: int) -> None:
        with optimizer.at_previous_iterate():
            loss_of(weight, 0, number).backward()
            raise KeyError

    loss_of(weight, 0, 0).backward()
    with pytest.raises(KeyError):
        fail(0)
    with optimizer.at_previous_iterate():  # once more
        loss_of(weight, 0, 0).backward()
    assert torch.equal(optimizer.anchor_gradients()[0], gradient(torch.zeros(SIZE), 0, 0))
    with pytest.raises(KeyError):
        fail(1)
    with optimizer.at_previous_iterate():
        loss_of(weight, 0, 2).backward()
    with pytest.raises(RuntimeError, match="missing"):  # the first microbatch is
        optimizer.step()
    optimizer.zero_grad()
    loss_of(weight, 0, 3).backward()
    with optimizer.at_previous_iterate():
        loss_of(weight, 0, 3).backward()
    optimizer.step()


def test_a_gradient_that_is_assigned_twice_is_kept_apart() -> None:
    weight, optimizer = stepped()
    weight.grad = torch.ones_like(weight)
    with optimizer.at_previous_iterate():
        weight.grad = optimizer.param_groups[0]["params"][0].new_full((SIZE,), 3.0)
    with optimizer.at_previous_iterate():
        pass
    assert optimizer.anchor_gradients()[0].tolist() == [3.0] * SIZE
    same = weight.grad
    with optimizer.at_previous_iterate():
        weight.grad = same
    assert optimizer.anchor_gradients()[0].data_ptr() != same.data_ptr()
    assert torch.equal(optimizer.anchor_gradients()[0], same)


def test_parameters_and_anchor_change_places() -> None:
    weight, optimizer = stepped()
    anchor, address = optimizer.state[weight]["previous_iterate"], weight.data_ptr()
    here = weight.detach().clone()
    with optimizer.at_previous_iterate():
        assert weight.data_ptr() == address
        assert weight.count_nonzero() == 0
        assert torch.equal(anchor, here)
    assert torch.equal(weight.detach(), here)
    assert anchor.count_nonzero() == 0
    assert optimizer.state[weight]["previous_iterate"] is anchor


@pytest.mark.parametrize("mode", ["copy", "rebuild"])
def test_a_graph_does_not_cross_the_border_of_a_block(mode: str) -> None:
    weight, optimizer = stepped(mode=mode)
    outside = (weight**2).sum()
    with optimizer.at_previous_iterate():
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            outside.backward()
        inside = (weight**2).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        inside.backward()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (SSVR.at_previous_iterate, r"at\('previous'\) was called inside a block"),
        (SSVR.step, r"step\(\) was called inside a block"),
    ],
    ids=["at", "step"],
)
def test_blocks_hold_neither_blocks_nor_steps(call: Callable[[SSVR], object], message: str) -> None:
    weight, optimizer = stepped()
    here = weight.detach().clone()

    def misuse() -> None:
        with optimizer.at_previous_iterate():
            block = call(optimizer)
            with block:  # type: ignore[attr-defined]
                pass

    with pytest.raises(RuntimeError, match=message):
        misuse()
    assert torch.equal(weight.detach(), here)
    with optimizer.at_previous_iterate():
        assert weight.count_nonzero() == 0


def test_an_anchor_of_another_dtype_takes_the_parameters() -> None:
    """As after loading the state of a bfloat16 model into a float32 one."""
    weight, optimizer = stepped()
    state = optimizer.state[weight]
    state["previous_iterate"] = torch.full((SIZE,), 0.5, dtype=torch.bfloat16)
    weight.data.fill_(1 / 3)
    with optimizer.at_previous_iterate():
        assert weight.tolist() == [0.5] * SIZE
    assert weight.tolist() == [1 / 3] * SIZE
    assert state["previous_iterate"].tolist() == [0.5] * SIZE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "scalar", "empty", "several blocks"])
def test_exchange_moves_every_bit(layout: str, dtype: torch.dtype) -> None:
    shape = {"scalar": (), "empty": (0, 3), "several blocks": (BLOCK + 5,)}.get(layout, (6, 7))
    size = torch.empty(0, dtype=dtype).element_size()
    generator = torch.Generator().manual_seed(0)

    def random_bits() -> Tensor:  # NaNs of all kinds, infinities and denormals among them
        drawn = torch.randint(0, 256, (*shape, size), generator=generator).to(torch.uint8)
        return drawn.view(dtype).squeeze(-1)

    first, second = random_bits(), random_bits()
    if layout == "transposed":
        first = first.t().contiguous().t()
    one, other = (bits_of(tensor).clone() for tensor in (first, second))
    exchange_(first, second)
    assert torch.equal(bits_of(first), other)
    assert torch.equal(bits_of(second), one)


def bits_of(values: Tensor) -> Tensor:
    return values.detach().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()])


# -- DistributedDataParallel ----------------------------------------------------------------------

MICROBATCHES, STEPS = 3, 4


def loss_on(model: nn.Module, rank: int, number: int) -> Tensor:
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(100 * rank + number))
    output: Tensor = model(inputs)
    return output.square().mean()


def small_model(layers: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(3, 3, bias=layers > 1) for _ in range(layers)))


def pairs_under_ddp(rank: int, views: bool, layers: int) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Gradients at both points in each step, the last microbatch reduced by DDP; and the two points."""
    model = small_model(layers)
    ddp = DistributedDataParallel(model, gradient_as_bucket_view=views)
    optimizer = SSVR(model.parameters(), 0.05)
    results = []
    for step in range(STEPS):
        for part in range(MICROBATCHES):
            number = step * MICROBATCHES + part
            last = part == MICROBATCHES - 1
            with nullcontext() if last else ddp.no_sync():
                if step % 2:  # in either order
                    loss_on(ddp, rank, number).backward()
                with optimizer.at_previous_iterate():
                    loss_on(ddp, rank, number).backward()
                if not step % 2:
                    loss_on(ddp, rank, number).backward()
        here = [p.grad for p in model.parameters() if p.grad is not None]
        there = optimizer.anchor_gradients()
        for one in here:
            for other in there:
                assert one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr()
        points = [
            [p.detach().clone() for p in model.parameters()],
            [state["previous_iterate"].clone() for state in optimizer.state.values()],
        ]
        results.append(([t.clone() for t in (*here, *there)], [t for point in points for t in point]))
        optimizer.step()
        optimizer.zero_grad(set_to_none=step != 2)
    return results


@pytest.mark.parametrize("layers", [1, 3])  # a bucket of one tensor, and of several
@pytest.mark.parametrize("views", [False, True], ids=["copies", "bucket views"])
def test_ddp_reduces_the_sum_of_microbatches_at_both_points(views: bool, layers: int) -> None:
    ranks = 2
    for results in run_workers(pairs_under_ddp, ranks, views, layers):
        for step, (gradients, points) in enumerate(results):
            model = small_model(layers)
            count = len(list(model.parameters()))
            assert (len(gradients), len(points)) == ((count, count) if step == 0 else (2 * count, 2 * count))
            expected = []
            for place in range(len(points) // count):
                at = copy.deepcopy(model)
                for p, value in zip(
                    at.parameters(), points[place * count : (place + 1) * count], strict=True
                ):
                    p.data.copy_(value)
                numbers = range(step * MICROBATCHES, (step + 1) * MICROBATCHES)
                total = torch.stack([loss_on(at, r, n) for r in range(ranks) for n in numbers]).sum()
                expected += torch.autograd.grad(total / ranks, list(at.parameters()))
            for got, wanted in zip(gradients, expected, strict=True):
                torch.testing.assert_close(got, wanted)
