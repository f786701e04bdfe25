"""What a minority of hostile workers can change, and what it cannot."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from lightning_signvr.signs import Counts, majority, pack_signs_and_abstentions, unpack_signs
from lightning_signvr.voting import MajorityVote
from tests.voting.oracle import ALL_RULES
from tests.workers import run_workers

NUMEL = 500
LIES = ("flip", "random", "constant", "against", "tie", "zero", "nan", "infinite", "missing")


def honest(worker: int) -> Tensor:
    """Numbers of all signs; every pair of signs of two workers is there."""
    generator = torch.Generator().manual_seed(worker)
    return torch.randint(-1, 2, (NUMEL,), generator=generator) * (
        torch.rand(NUMEL, generator=generator) + 0.1
    )


def lie(kind: str, step: int) -> Tensor | None:
    """What a hostile worker votes that knows what the two others do."""
    first, second = honest(0), honest(1)
    if kind == "flip":
        return -first
    if kind == "random":
        return torch.randn(NUMEL, generator=torch.Generator().manual_seed(step))
    if kind == "constant":
        return torch.full((NUMEL,), -1e30)
    if kind == "against":
        return -(first.sign() + second.sign())
    if kind == "tie":
        return torch.where(first.sign() + second.sign() == 0, 0.0, -first.sign() - second.sign())
    if kind == "infinite":
        return -first * float("inf")  # NaN where that is 0
    return {"zero": torch.zeros(NUMEL), "nan": torch.full((NUMEL,), float("nan")), "missing": None}[kind]


def vote_beside_a_liar(rank: int, topology: str) -> dict[tuple[str, str, str], list[float]]:
    outcomes = {}
    for rules, (step, kind) in product(ALL_RULES, enumerate(LIES)):
        vote = MajorityVote(topology=topology, **rules)
        direction = lie(kind, step) if rank == 2 else honest(rank)
        outcomes[rules["ties"], rules["zeros"], kind] = vote([direction], like=[honest(0)]).signs(0).tolist()
    return outcomes


@pytest.mark.parametrize("topology", ["one_phase", "two_phase"])
def test_one_of_three_changes_nothing_that_the_others_agree_on(topology: str) -> None:
    everyones = run_workers(vote_beside_a_liar, 3, topology)
    assert everyones[0] == everyones[1] == everyones[2]
    first, second = honest(0).sign(), honest(1).sign()
    agreed = (first == second) & (first != 0)
    assert agreed.sum() > 50
    assert len(everyones[0]) == len(ALL_RULES) * len(LIES)
    for (ties, zeros, kind), outcome in everyones[0].items():
        signs = torch.tensor(outcome)
        assert torch.equal(signs[agreed], first[agreed]), (ties, zeros, kind)
        if zeros == "positive":  # a 0 is a vote for +
            positive = (first >= 0) & (second >= 0)
            assert signs[positive].eq(1).all(), (ties, kind)
        given = lie(kind, 0)
        if zeros == "abstain" and kind in ("flip", "constant", "against", "missing"):
            silent = (first == 0) & (second == 0)  # it votes alone
            alone = torch.zeros(NUMEL) if given is None else given.sign()
            assert torch.equal(signs[silent], alone[silent]), (ties, kind)


@pytest.mark.parametrize("workers", [3, 5, 7])
def test_a_minority_changes_only_what_is_closer_than_it_is_large(workers: int) -> None:
    """All 3 ** workers ways in which they can vote + or - or abstain."""
    ballots = torch.tensor(list(product([-1.0, 0.0, 1.0], repeat=workers))).T.contiguous()
    packed = [pack_signs_and_abstentions(ballot)[:2] for ballot in ballots]
    tally = majority(torch.stack([each[0] for each in packed]), torch.stack([each[1] for each in packed]))
    assert tally.tied is not None
    signs = unpack_signs(tally.negative, ballots.shape[1])
    tied = unpack_signs(tally.tied, ballots.shape[1]) < 0
    for liars in range(1, (workers + 1) // 2):
        margin = ballots[liars:].sum(0)
        safe = margin.abs() > liars
        assert torch.equal(signs[safe], margin[safe].sign())
        assert not tied[safe].any()
        assert tied[~safe].any()


def votes_with_padding(rank: int, kind: str, topology: str) -> tuple[Counts, list[float]]:
    """Rank 1 sets the bits behind the last element of each tensor, which belong to no coordinate."""
    vote = MajorityVote(topology=topology, ties="zero")  # type: ignore[arg-type]
    direction = torch.tensor([1.0, -1.0, 0.0])
    begun = vote.open([direction] * 2)
    begun.put(0, direction)
    if rank == 1:
        ballot = begun._ballot
        plane = ballot._negative if kind == "against" else ballot._packer._abstaining_plane()
        plane |= 0b11111000
    begun.put(1, direction)
    votes = begun.close()
    for _ in votes.arrivals():
        pass
    return votes.counts, votes.signs(0).tolist()


@pytest.mark.parametrize("topology", ["one_phase", "two_phase"])
@pytest.mark.parametrize("kind", ["against", "abstaining"])
def test_bits_that_belong_to_no_coordinate_are_ignored(kind: str, topology: str) -> None:
    for counts, signs in run_workers(votes_with_padding, 2, kind, topology):
        assert counts == Counts(votes=8, margin=8, silent=2)
        assert signs == [1.0, -1.0, 0.0]
