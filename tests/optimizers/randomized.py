"""What the tests of randomized signs share: training on the exact problem, and the signs' definition."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_signvr.optimizers import SignOptimizer
from lightning_signvr.signs import random_uniform
from lightning_signvr.voting import MajorityVote, StochasticVote
from tests.optimizers.problems import SIZE, loss_of

SEED = 11
PARTS = (5, SIZE - 5)  # two parameters, to see that each has numbers of its own
LR = 1 / 16

Make = Callable[..., SignOptimizer]


def numbers(stream: int, step: int) -> Tensor:
    """The documented numbers of a stream at a step, for both parameters."""
    drawn = [random_uniform(SEED, step, stream, index, size) for index, size in enumerate(PARTS)]
    return torch.cat(drawn).double()


def uniform(rank: int, step: int) -> Tensor:
    """A worker's."""
    return numbers(2**33 + rank, step)


def drawn_sign(mean: Tensor, uniform: Tensor) -> Tensor:
    """+1 with probability ``(1 + mean) / 2``, else -1."""
    return torch.where((1 - uniform) / 2 < (1 + mean) / 2, 1.0, -1.0).double()


def stochastic_sign(direction: Tensor, radius: Tensor, rank: int, step: int) -> Tensor:
    """``S_R``, which is 0 where the direction is 0."""
    return torch.where(direction == 0, 0.0, drawn_sign(direction / radius, uniform(rank, step)))


def server_sign(ballots: list[Tensor], step: int) -> Tensor:
    """``S_1`` of the mean; 0 where nobody voted."""
    votes = torch.stack(ballots)
    return torch.where(votes.any(0), drawn_sign(votes.mean(0), numbers(2**34, step)), 0.0)


def radius_by(policy: str, number: float, direction: Tensor, largest: Tensor) -> Tensor:
    """Radius of each coordinate, from the table in ``signs/encoders/radius.py``; parts are tensors.

    Of a stack of several workers' directions, it is what they share.
    """
    if policy == "running":
        return number * largest
    parts = []
    for part in direction.split(PARTS, dim=-1):
        size = {"fixed": 1.0, "max": part.abs().max(), "rms": part.square().mean().sqrt()}[policy]
        parts.append(torch.full_like(part, number * float(size)))
    return torch.cat(parts, dim=-1)


def radii_by(
    policy: str, number: float, directions: list[Tensor], largest: list[Tensor], before: Tensor | None
) -> list[Tensor]:
    """Of each worker; where they share, from ``before``, all directions of the last step."""
    if before is None or policy in ("fixed", "running"):
        return [radius_by(policy, number, *own) for own in zip(directions, largest, strict=True)]
    return list(radius_by(policy, number, before, before))


def weights_at_zero() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(size, dtype=torch.float64)) for size in PARTS]


def steps(
    weights: list[nn.Parameter], optimizer: SignOptimizer, rank: int, count: int, first: int = 0
) -> Tensor:
    """Minibatches ``first`` to ``first + count``; the point reached."""
    for step in range(first, first + count):

        def closure(step: int = step) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(torch.cat(list(weights)), rank, step)
            loss.backward()
            return loss

        optimizer.step(closure)
    return torch.cat([weight.detach() for weight in weights])


def train(rank: int, make: Make, options: dict[str, Any], count: int = 50) -> Tensor:
    weights = weights_at_zero()
    kind = StochasticVote if options.get("option") == 2 else MajorityVote
    vote = kind(ties="positive", seed=SEED)
    optimizer = make(weights, LR, vote=vote, **options)
    return steps(weights, optimizer, rank, count)


def check_resumes(make: Make, options: dict[str, Any], folder: Path) -> None:
    """From a file, by pickle: the same steps as without a break."""
    weights = weights_at_zero()
    optimizer = make(weights, LR, **options)
    steps(weights, optimizer, 0, 10)
    torch.save([[weight.detach() for weight in weights], optimizer.state_dict()], folder / "state.pt")
    copies = [pickle.loads(pickle.dumps((weights, optimizer)))]
    values, state = torch.load(folder / "state.pt", weights_only=True)
    twins = [nn.Parameter(value) for value in values]
    twin_optimizer = make(twins, lr=1.0)
    twin_optimizer.load_state_dict(state)
    copies.append((twins, twin_optimizer))
    expected = steps(weights, optimizer, 0, 10, first=10)
    for each in copies:
        assert torch.equal(steps(*each, 0, 10, first=10), expected)


def check_unused_stay(make: Make, options: dict[str, Any]) -> None:
    """Coordinates with a gradient of 0, parameters without one, and empty ones."""
    used, unused, empty = (nn.Parameter(torch.zeros(size)) for size in (4, 3, 0))
    optimizer = make([used, unused, empty], 1.0, **options)
    for _ in range(20):
        used.grad = torch.tensor([1.0, 0.0, -0.0, 0.0])
        empty.grad = torch.zeros(0)
        with torch.no_grad():
            optimizer.step()
    assert used[0] != 0
    assert used[1:].tolist() == [0, 0, 0]
    assert unused.tolist() == [0, 0, 0]


def check_learns(make: Make, dtype: torch.dtype) -> None:
    """With its defaults, a small network, in any dtype."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    inputs, labels = torch.randn(32, 6).to(dtype), torch.randint(3, (32,))
    optimizer = make(model.parameters(), lr=0.02)
    losses = []
    for _ in range(100):

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs).float(), labels)
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
    assert losses[-1] < 0.5 * losses[0]
