"""EF-signSGD against the paper's algorithm, alone, and with compressed answers among workers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_signvr.optimizers.efsignsgd import EFSignSGD
from lightning_signvr.optimizers.rank_states import own_rank_state, with_rank_states
from lightning_signvr.voting import MeanVote
from tests.workers import run_workers

STEPS, LR, WORKERS = 50, 1 / 64, 3
SHAPES = [(5, 7), (3,), (0,), (1,), (40,), (29, 11)]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"momentum": 0.75, "weight_decay": 0.5},
    {"maximize": True},
]
LARGE = 1 << 16


def gradient(point: Tensor, index: int, rank: int, step: int) -> Tensor:
    """Of a quadratic whose curvature (some of it zero) and target differ between samples."""
    generator = torch.Generator().manual_seed(7919 * index + 1000 * rank + step)
    curvature = torch.randint(0, 4, point.shape, generator=generator).to(point.dtype)
    curvature.view(-1)[1::5] = 0  # no worker ever has a gradient there
    target = torch.randn(point.shape, generator=generator).to(point.dtype)
    return curvature * (point - target)


def scaled_sign(p: Tensor) -> Tensor:
    return p.abs().mean() * p.sign() if p.numel() else p


def paper(momentum: float = 0.0, weight_decay: float = 0.0, maximize: bool = False) -> list[Tensor]:
    """One worker: ``p = lr g + e``, ``D = (||p||_1 / d) sign(p)``, ``x = x - D``, ``e = p - D``."""
    points, errors, sums = ([torch.zeros(shape) for shape in SHAPES] for _ in range(3))
    for step in range(STEPS):
        for k, e in enumerate(errors):
            sums[k] = momentum * sums[k] + gradient(points[k], k, 0, step)
            p = LR * sums[k] + e
            points[k] = (1 - LR * weight_decay) * points[k] + (1 if maximize else -1) * scaled_sign(p)
            errors[k] = p - scaled_sign(p)
    return points


def pieces(index: int) -> list[slice]:
    """The elements of a tensor that each owner has: shards are multiples of 64 bits, tensors of 8."""
    padded = [-(-torch.Size(shape).numel() // 8) * 8 for shape in SHAPES]
    shard, start = -(-sum(padded) // (64 * WORKERS)) * 64, sum(padded[:index])
    bounds = [max(0, owner * shard - start) for owner in range(WORKERS + 1)]
    return [slice(*pair) for pair in pairwise(bounds)]


def reference(momentum: float = 0.0, weight_decay: float = 0.0, maximize: bool = False) -> list[Tensor]:
    """``a = mean_j D^j + e_s``, answered by its scaled sign on each owner's piece; ``e_s = a - answer``."""
    points, kept = ([torch.zeros(shape) for shape in SHAPES] for _ in range(2))
    errors, sums = ([[torch.zeros(shape) for shape in SHAPES] for _ in range(WORKERS)] for _ in range(2))
    for step in range(STEPS):
        for k, a in enumerate(kept):
            mean = torch.zeros(SHAPES[k])
            for rank in range(WORKERS):
                sums[rank][k] = momentum * sums[rank][k] + gradient(points[k], k, rank, step)
                p = LR * sums[rank][k] + errors[rank][k]
                mean.add_(p.sign(), alpha=p.abs().mean().item() / WORKERS)
                errors[rank][k] = p - scaled_sign(p)
            answer = a.add_(mean).sign()
            for piece in pieces(k):
                sizes = a.view(-1)[piece].abs().double()
                answer.view(-1)[piece] *= (sizes.sum() / max(1, sizes.count_nonzero())).float()
            a.sub_(answer)
            points[k] = (1 - LR * weight_decay) * points[k] + (1 if maximize else -1) * answer
    return points


def zeros() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]


def steps(optimizer: EFSignSGD, weights: Sequence[Tensor], rank: int, first: int, count: int) -> list[Tensor]:
    for step in range(first, first + count):
        for k, weight in enumerate(weights):
            weight.grad = gradient(weight.detach(), k, rank, step)
        optimizer.step()
    return [weight.detach().clone() for weight in weights]


def train(rank: int, options: dict[str, Any]) -> list[Tensor]:
    weights = zeros()
    return steps(EFSignSGD(weights, LR, **options), weights, rank, 0, STEPS)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_one_worker_is_the_papers_algorithm_bit_for_bit(options: dict[str, Any]) -> None:
    assert all(map(torch.equal, train(0, options), paper(**options)))


def test_one_workers_owner_has_no_error() -> None:
    weights = zeros()
    optimizer = EFSignSGD(weights, 0.1)  # not a power of two: every product is rounded
    steps(optimizer, weights, 0, 0, STEPS)
    assert not optimizer.state["owner"]["estimate"].any()
    assert any(state["error"].any() for key, state in optimizer.state.items() if key != "owner")


def test_one_coordinate_per_tensor_is_sgd() -> None:
    """The scaled sign of one number is the number: torch's SGD, heavy ball included."""
    ours, theirs = ([nn.Parameter(torch.zeros(1)) for _ in range(5)] for _ in range(2))
    options: list[dict[str, Any]] = [{"params": part, "lr": 0.1 * k} for k, part in enumerate(ours)]
    optimizer = EFSignSGD(options, momentum=0.9)
    sgd = torch.optim.SGD(
        [{**group, "params": p} for group, p in zip(options, theirs, strict=True)], 0.1, 0.9
    )
    for step in range(STEPS):
        for k, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            mine.grad, other.grad = (gradient(p.detach(), k, 0, step) for p in (mine, other))
        optimizer.step()
        sgd.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_karimireddys_counterexample() -> None:
    """f(x) = x / 4 on [-1, 1], gradients 4 (one time in four) and -1: signSGD drifts to +1, this to -1."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = EFSignSGD([weight], lr=0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(1500):
        weight.grad = torch.where(torch.rand(1, generator=generator) < 0.25, 4.0, -1.0)
        optimizer.step()
        weight.data.clamp_(-1, 1)
    assert weight.item() < -0.9


def test_the_learning_rate_is_compressed() -> None:
    """A schedule acts on new gradients: at a rate of 0 what is kept still goes out."""
    weight = nn.Parameter(torch.zeros(2))
    optimizer = EFSignSGD([weight], lr=torch.tensor(0.5))
    weight.grad = torch.tensor([3.0, -1.0])
    optimizer.step()  # -1.5 and 0.5, of which -1 and 1 are sent
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert weight.tolist() == [-1.5, 0.5]
    assert not optimizer.state[weight]["error"].any()


# -- three workers --------------------------------------------------------------------------------


def work(rank: int) -> dict[str, Any]:
    results: dict[str, Any] = {"trained": [train(rank, options) for options in OPTIONS]}
    results["books"] = books(rank)
    results["resumed"] = resumed(rank)
    results["missing"] = missing(rank)
    weight = nn.Parameter(torch.zeros(LARGE))
    weight.grad = torch.randn(LARGE, generator=torch.Generator().manual_seed(rank))
    optimizer = EFSignSGD([weight])
    optimizer.step()
    results["bytes"] = optimizer.vote.traffic.bytes_sent
    return results


def books(rank: int) -> list[Tensor]:
    """The way that the parameters went, the own error, the owner's, and the sum of the own gradients."""
    weight, total = nn.Parameter(torch.zeros(192)), torch.zeros(192)
    optimizer = EFSignSGD([weight], lr=0.5)
    for step in range(20):
        weight.grad = torch.randn(192, generator=torch.Generator().manual_seed(100 * rank + step))
        total += weight.grad
        optimizer.step()
    return [weight.detach(), optimizer.state[weight]["error"], optimizer.state["owner"]["estimate"], total]


def resumed(rank: int) -> list[bool]:
    """Ten steps, the last five again from a gathered checkpoint and from copies."""
    weights = zeros()
    optimizer = EFSignSGD(weights, LR, momentum=0.75)
    steps(optimizer, weights, rank, 0, 5)
    gathered = [copy.deepcopy(with_rank_states(optimizer.state_dict(), torch.device("cpu")))]
    dist.broadcast_object_list(gathered)
    twins = [nn.Parameter(weight.detach().clone()) for weight in weights]
    twin = EFSignSGD(twins, lr=1.0)
    twin.load_state_dict(own_rank_state(gathered[0], rank, WORKERS))
    copies = [
        (twins, twin),
        copy.deepcopy((weights, optimizer)),
        pickle.loads(pickle.dumps((weights, optimizer))),
    ]
    expected = steps(optimizer, weights, rank, 5, 5)
    return [all(map(torch.equal, steps(o, w, rank, 5, 5), expected)) for w, o in copies]


def missing(rank: int) -> dict[str, Any]:
    """Gradients of all, of rank 1 alone, of nobody, and of all again."""
    weight, other = nn.Parameter(torch.ones(576)), nn.Parameter(torch.ones(192))
    optimizer = EFSignSGD([weight, other], lr=0.5, weight_decay=0.1)
    seen = []
    for step, voters in enumerate([{0, 1, 2}, {1}, set(), {0, 1, 2}]):
        weight.grad = None
        if rank in voters:
            weight.grad = torch.randn(576, generator=torch.Generator().manual_seed(100 * rank + step))
        other.grad = torch.ones(192)
        optimizer.step()
        seen.append([weight.clone(), optimizer.state[weight]["error"].clone()])
        seen[-1].append(optimizer.state["owner"]["estimate"].clone())
    return {"seen": seen, "other": other.detach()}


@pytest.fixture(scope="module")
def worked() -> list[dict[str, Any]]:
    return run_workers(work, WORKERS)


def test_workers_follow_the_formula_bit_for_bit(worked: list[dict[str, Any]]) -> None:
    expected = [reference(**options) for options in OPTIONS]
    for result in worked:
        for mine, theirs in zip(result["trained"], expected, strict=True):
            assert all(map(torch.equal, mine, theirs))


def test_nothing_is_lost(worked: list[dict[str, Any]]) -> None:
    """All gradients times ``lr``: what moved the parameters, and both kinds of errors."""
    columns = zip(*(result["books"] for result in worked), strict=True)
    way, errors, owned, totals = (torch.stack(column) for column in columns)
    assert owned.shape == (3, 64)
    assert owned.any()
    torch.testing.assert_close(-way[0] + errors.mean(0) + owned.view(-1), 0.5 * totals.mean(0))


def test_resumes_with_the_owners_error(worked: list[dict[str, Any]]) -> None:
    assert [result["resumed"] for result in worked] == [[True] * 3] * 3


def test_a_worker_without_a_gradient_adds_nothing_and_keeps_its_error(worked: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(worked):
        [(before, error, _), (after, kept, _), *_] = result["missing"]["seen"]
        assert torch.equal(error, kept) == (rank != 1)
        assert not torch.equal(before, after)
        assert torch.equal(after, worked[0]["missing"]["seen"][1][0])


def test_without_any_gradient_nothing_changes(worked: list[dict[str, Any]]) -> None:
    for result in worked:
        [_, before, after, later] = result["missing"]["seen"]
        assert torch.equal(before[0], after[0])
        assert torch.equal(before[1], after[1])
        assert torch.equal(before[2][:64], after[2][:64])  # the owner's error, of `weight` alone
        assert not torch.equal(after[0], later[0])
        assert result["missing"]["other"].unique().numel() == 1


def test_bits_sent(worked: list[dict[str, Any]]) -> None:
    """1 bit up and 1 down for what others own, and headers with 2 floats."""
    payload = 2 * LARGE * (WORKERS - 1) // WORKERS // 8
    for result in worked:
        assert payload < result["bytes"] < payload + 2 * 2 * (64 + 16)


# -- what else goes wrong -------------------------------------------------------------------------


def test_16_bit_parameters_have_float32_errors() -> None:
    weight = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    optimizer = EFSignSGD([weight], lr=2.0**-12, momentum=0.5)
    for _ in range(3):
        weight.grad = torch.tensor([1.0, 0.5], dtype=torch.bfloat16)
        optimizer.step()
    assert {value.dtype for value in optimizer.state[weight].values()} == {torch.float32}
    assert optimizer.state[weight]["error"].any()


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [("momentum", 1.0, ValueError), ("lr", -0.1, ValueError), ("vote", MeanVote(), TypeError)],
)
def test_bad_arguments_are_named(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^{name} must be"):
        EFSignSGD([nn.Parameter(torch.zeros(1))], **{name: value})
