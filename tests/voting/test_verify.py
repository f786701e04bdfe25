"""Checksums beside whatever is sent."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from lightning_signvr.voting import MajorityVote
from tests.workers import WorkerError, run_workers

SIZES = (300, 7, 64)
FLIPS_AT = 3  # the collective of the damaged rank whose bytes are damaged on the way, checksums aside

FORMS: dict[str, tuple[int, dict[str, Any]]] = {
    "one phase": (2, {}),
    "two phases": (3, {"topology": "two_phase"}),
    "buckets": (4, {"topology": "two_phase", "bucket_parameters": 64}),
    "nodes": (4, {"voters": "node", "workers_per_node": 2}),
}


def directions(rank: int, step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(10 * step + rank)
    return [torch.randint(-1, 2, (size,), generator=generator).float() for size in SIZES]


def vote(rank: int, rules: dict[str, Any], verify: bool) -> tuple[list[Tensor], int]:
    voting = MajorityVote(verify=verify, **rules)
    signs = []
    for step in range(4):
        votes = voting(directions(rank, step))
        signs += [votes.signs(index) for index in range(len(SIZES))]
    return signs, voting.traffic.collectives


def with_and_without(rank: int, rules: dict[str, Any]) -> bool:
    signs, collectives = vote(rank, rules, False)
    verified, more = vote(rank, rules, True)
    assert more > 1.5 * collectives
    return all(map(torch.equal, signs, verified))


@pytest.mark.parametrize("form", FORMS)
def test_the_outcome_is_the_same(form: str) -> None:
    workers, rules = FORMS[form]
    assert all(run_workers(with_and_without, workers, rules))


def flip(name: str, sent: list[int]) -> None:
    """Let a collective send one bit other than it was given; what it does with checksums is left alone."""
    collective = getattr(dist, name)

    def damaged(output: Tensor, source: Tensor, **options: Any) -> Any:
        if source.dtype == torch.uint8:
            sent.append(source.numel())
            if len(sent) == FLIPS_AT:
                source = source.clone()
                source[-1] ^= 4
        return collective(output, source, **options)

    setattr(dist, name, damaged)


def damaged_by_rank_one(rank: int, rules: dict[str, Any]) -> None:
    if rank == 1:
        sent: list[int] = []
        for name in ("all_to_all_single", "all_gather_into_tensor", "all_gather_single"):
            if hasattr(dist, name):
                flip(name, sent)
    vote(rank, rules, True)


@pytest.mark.parametrize("form", ["one phase", "two phases", "buckets"])
def test_what_was_damaged_on_the_way_names_the_sender(form: str) -> None:
    workers, rules = FORMS[form]
    with pytest.raises(WorkerError, match=r"what rank 1 sent was damaged on the way") as error:
        run_workers(damaged_by_rank_one, workers, rules)
    assert "what rank 0 sent" not in str(error.value)


def verified_by_some(rank: int) -> None:
    vote(rank, {}, rank == 0)


def test_all_ranks_verify_or_none() -> None:
    with pytest.raises(WorkerError, match="the ranks do not vote on the same tensors by the same rules"):
        run_workers(verified_by_some, 2)
