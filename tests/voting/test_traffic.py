from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.distributed as dist

from lightning_signvr.voting import MajorityVote, Traffic
from tests.voting.oracle import STORY, parameters
from tests.workers import run_workers

LARGE = 1_000_003


def play(rank):
    return {
        "bits": {
            "no zeros": bits_per_step([noise(rank, step) for step in range(3)]),
            "zeros as +": bits_per_step([holes(rank, 0)] * 3, zeros="positive"),
            "zeros as coins": bits_per_step([holes(rank, 0)] * 3, zeros="random"),
            "static zeros": bits_per_step([holes(rank, 0)] * 5),
            "a dead unit": bits_per_step([dead_unit(rank, step) for step in range(4)]),
            "tie rule zero": bits_per_step([noise(rank, step) for step in range(3)], ties="zero"),
        },
        "handed over": handed_over(rank),
    }


def noise(rank, step):
    direction = torch.rand(LARGE, generator=torch.Generator().manual_seed(10 * step + rank)) - 0.5
    return direction.masked_fill_(direction == 0, 1)


def holes(rank, step):
    """A third of the coordinates is 0 and stays so."""
    direction = noise(rank, step)
    direction[rank::3] = 0
    return direction


def dead_unit(rank, step):
    """A unit of 1000 weights dies on all ranks after the first step."""
    direction = noise(rank, step)
    if step > 0:
        direction[7000:8000] = 0
    return direction


def bits_per_step(directions, **rules):
    """Bits sent and received per parameter in each step."""
    vote = MajorityVote(**{"topology": "two_phase", **rules})
    totals = [(0, 0)]
    for direction in directions:
        vote([direction])
        totals.append((vote.traffic.bytes_sent, vote.traffic.bytes_received))
    return [
        tuple(8 * (new - old) / LARGE for new, old in zip(after, before, strict=True))
        for before, after in pairwise(totals)
    ]


def handed_over(rank):
    """What the counters say beside what torch.distributed was given, less what a rank keeps."""
    workers, given = dist.get_world_size(), Traffic()

    def spy(name, copies):
        original = getattr(dist, name)

        def collective(output, source, *args, **kwargs):
            given.bytes_sent += copies * source.nbytes * (workers - 1) // workers
            given.bytes_received += output.nbytes * (workers - 1) // workers
            given.collectives += 1
            return original(output, source, *args, **kwargs)

        setattr(dist, name, collective)

    spy("all_to_all_single", 1)
    for name in ("all_gather_into_tensor", "all_gather_single"):
        if hasattr(dist, name):
            spy(name, workers)
    vote = MajorityVote(ties="zero")
    for step, make in enumerate(STORY):
        vote(make(rank, step), parameters())
    counted = vote.traffic
    return [(t.bytes_sent, t.bytes_received, t.collectives) for t in (counted, given)]


@pytest.fixture(scope="module", params=[2, 3, 4])
def played(request):
    return run_workers(play, request.param)


@pytest.mark.parametrize("case", ["no zeros", "zeros as +", "zeros as coins"])
def test_one_bit_each_way(played, case):
    workers = len(played)
    for results in played:
        for sent, received in results["bits"][case]:
            assert sent == pytest.approx(2 * (workers - 1) / workers, rel=0.01)
            assert received == pytest.approx(sent)


def test_static_zeros_cost_nothing_once_they_are_known(played):
    for results in played:
        plain = results["bits"]["no zeros"][-1]
        first, *_, late, last = results["bits"]["static zeros"]
        assert late == last == plain
        assert first[0] == pytest.approx(1.5 * plain[0], rel=0.01)  # a second plane, on the way up only


def test_a_dead_unit_costs_its_own_bits_once(played):
    for results in played:
        alive, died, second, dead = results["bits"]["a dead unit"]
        plain = results["bits"]["no zeros"]
        assert (alive, dead) == (plain[0], plain[-1])
        assert died[0] + second[0] < 2.02 * plain[-1][0]


def test_tie_rule_zero_costs_a_second_bit_down_for_even_electorates_only(played):
    workers = len(played)
    for results in played:
        one_way = (workers - 1) / workers
        ways = 3 if workers % 2 == 0 else 2
        assert results["bits"]["tie rule zero"][-1][0] == pytest.approx(ways * one_way, rel=0.01)


def test_counters_equal_what_the_collectives_were_handed(played):
    for results in played:
        counted, given = results["handed over"]
        assert counted == given
        assert min(counted) > 0
