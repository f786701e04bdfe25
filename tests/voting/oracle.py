"""The documented rules of the vote, computed in one process, one coordinate after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from lightning_signvr.signs import random_bytes
from lightning_signvr.voting import TIE_RULES, ZERO_RULES, VotedSigns
from lightning_signvr.voting.rules import TIE_STREAM, zero_stream

SHAPES = ((0,), (1,), (3,), (2, 4), (17,), (25, 40), (5,))
ALL_RULES = [{"ties": ties, "zeros": zeros} for ties, zeros in product(TIE_RULES, ZERO_RULES)]

Directions = list[Tensor | None]


@dataclass
class Outcome:
    """All that a vote says, in plain Python."""

    signs: list[list[int]]
    present: list[bool]
    votes: int = 0
    margin: int = 0
    ties: int = 0
    silent: int = 0


def outcome_of(voted: VotedSigns) -> Outcome:
    """What the vote under test decided."""
    signs = [voted.signs(index) for index in range(len(voted.shapes))]
    assert [each.shape for each in signs] == list(voted.shapes)
    as_lists = [each.flatten().int().tolist() for each in signs]
    return Outcome(as_lists, list(voted.present), **asdict(voted.counts))


def expected_outcome(
    everyones: Sequence[Directions], step: int, ties: str = "random", zeros: str = "abstain", seed: int = 0
) -> Outcome:
    """What it should decide, given the directions of every worker."""
    present = [any(direction is not None for direction in given) for given in zip(*everyones, strict=True)]
    outcome = Outcome([], present)
    numels = [torch.Size(shape).numel() for shape in SHAPES]
    offset = 0  # bytes of the tensors before
    for index, numel in enumerate(numels):
        stop = offset + -(-numel // 8)
        ballots = []
        for worker, directions in enumerate(everyones):
            direction = directions[index]
            if direction is None:
                ballots.append([0] * numel)
                continue
            numbers = direction.double().flatten().tolist()
            ballot = [int(number > 0) - int(number < 0) for number in numbers]
            if zeros == "positive":
                ballot = [vote or 1 for vote in ballot]
            elif zeros == "random":
                coins = toss(seed, step, zero_stream(worker), offset, stop)
                ballot = [vote or coin for vote, coin in zip(ballot, coins, strict=False)]
            ballots.append(ballot)
        tie_coins = toss(seed, step, TIE_STREAM, offset, stop)
        signs = []
        for coordinate in range(numel):
            votes = [ballot[coordinate] for ballot in ballots if ballot[coordinate]]
            outcome.votes += len(votes)
            outcome.margin += abs(sum(votes))
            outcome.silent += not votes
            if votes and sum(votes) == 0:
                outcome.ties += 1
                signs.append({"random": tie_coins[coordinate], "zero": 0, "positive": 1}[ties])
            else:
                signs.append((sum(votes) > 0) - (sum(votes) < 0))
        outcome.signs.append(signs)
        offset = stop
    return outcome


def toss(seed: int, step: int, stream: int, start: int, stop: int) -> list[int]:
    """The documented coins of these bytes, -1 where the bit is set."""
    coins = random_bytes(seed, step, stream, start, stop).tolist()
    return [-1 if byte >> bit & 1 else 1 for byte in coins for bit in range(8)]


# -- directions -----------------------------------------------------------------------------------

SPECIAL = (0.0, -0.0, float("nan"), float("-nan"), float("inf"), float("-inf"), 1e-40, -1e-40, 2.0, -3.0)


def parameters() -> list[Tensor]:
    return [torch.zeros(shape) for shape in SHAPES]


def random(worker: int, step: int) -> Directions:
    """Without zeros; with two workers half of the coordinates are tied."""
    generator = torch.Generator().manual_seed(100 * step + worker)
    return [torch.rand(shape, generator=generator) - 0.5 for shape in SHAPES]


def few_zeros(worker: int, step: int) -> Directions:
    """At the same coordinates in every step: some of each worker's own, some of all of them."""
    directions = random(worker, step)
    for direction in directions:
        direction.view(-1)[7 * worker :: 97] = 0
        direction.view(-1)[3::50] = -0.0
    return directions


def many_zeros(worker: int, step: int) -> Directions:
    """Most coordinates, others in each step."""
    return [torch.where(direction.abs() < 0.3, 0.0, direction) for direction in random(worker, step)]


def special(worker: int, step: int) -> Directions:
    """NaN, infinities, denormals and zeros of both signs meet each other and ordinary numbers."""
    numbers = torch.tensor(SPECIAL)
    return [
        numbers[(torch.arange(torch.Size(shape).numel()) // (1 + 2 * worker) + step) % 10].view(shape)
        for shape in SHAPES
    ]


def tied(worker: int, step: int) -> Directions:
    """Every even electorate is tied everywhere."""
    return [direction.abs() * (-1) ** worker for direction in random(worker, step)]


def missing(worker: int, step: int) -> Directions:
    """A different set is missing on each worker; the third tensor on all."""
    directions: Directions = list(few_zeros(worker, step))
    for index in range(len(SHAPES)):
        if index == 2 or (index + worker) % 3 == step % 3:
            directions[index] = None
    return directions


def nothing(worker: int, step: int) -> Directions:
    return [None] * len(SHAPES)


def only_first(worker: int, step: int) -> Directions:
    """Only one worker has anything to say."""
    return list(random(worker, step)) if worker == 0 else nothing(worker, step)


def noncontiguous_bfloat16(worker: int, step: int) -> Directions:
    wide = [torch.stack([direction, -direction], -1).bfloat16() for direction in many_zeros(worker, step)]
    return [each[..., 0] for each in wide]


# Abstentions appear, stay, change, become dense, vanish, and whole tensors come and go.
STORY: Sequence[Any] = (
    random, few_zeros, few_zeros, few_zeros, many_zeros, many_zeros, random, special, tied, missing,
    missing, missing, nothing, only_first, few_zeros, noncontiguous_bfloat16, random, random, tied,
)  # fmt: skip
