"""Buckets, topologies and orders: the outcome is that of the serial vote, to the last bit."""

from __future__ import annotations

import itertools
import resource

import pytest
import torch

from lightning_signvr.voting import MajorityVote, StochasticVote
from lightning_signvr.voting.buckets import MOST, SMALLEST, cut
from lightning_signvr.voting.layout import Layout
from lightning_signvr.voting.pipeline import AHEAD, BEHIND, LANES, schedule
from tests.workers import WorkerError, run_workers

# uneven, tiny and empty tensors; with the small buckets some hold many of them and some a part of one
SHAPES = [(3,), (0,), (1, 7), (2500,), (), (64,), (40, 33), (5,), (0, 4)]
SERIAL = {"topology": "two_phase", "bucket_parameters": 2**21}
TIES, ZEROS = ("random", "zero"), ("abstain", "random")
RULES = [{"ties": ties, "zeros": zeros} for ties, zeros in itertools.product(TIES, ZEROS)]
STEPS = 4


def like():
    return [torch.zeros(shape) for shape in SHAPES]


def directions(rank, step):
    """With zeros that come and go, a tensor that a rank has nothing to say on, and one that none has."""
    generator = torch.Generator().manual_seed(97 * step + rank)
    made = [torch.randn(shape, generator=generator) for shape in SHAPES]
    made[3][: 400 * step] = 0
    made[6][rank :: 2 + step] = 0
    made[5] = None
    if (rank + step) % 2:
        made[2] = None
    return made


def outcome(votes):
    signs = [votes.signs(index) for index in range(len(SHAPES))]
    return signs, list(votes.present), votes.counts, votes.agreement


def serial(kind, rules, rank):
    vote = kind(**rules, **SERIAL)
    return [outcome(vote(directions(rank, step), like())) for step in range(STEPS)]


def streamed(kind, rules, rank, topology, parameters):
    vote, results = kind(**rules, topology=topology, bucket_parameters=parameters), []
    for step in range(STEPS):
        votes = vote.stream(iter(directions(rank, step)), like())
        seen = {index: votes.signs(index) for index in votes.arrivals()}  # before the others have come
        assert sorted(seen) == list(range(len(SHAPES)))
        results.append(([seen[index] for index in sorted(seen)], *outcome(votes)[1:]))
    return results


def opened(kind, rules, rank, topology, parameters):
    """Directions come from the last to the first, in another order on each rank."""
    vote, results = kind(**rules, topology=topology, bucket_parameters=parameters), []
    for step in range(STEPS):
        made = directions(rank, step)
        order = list(range(len(SHAPES)))[::-1]
        order[rank % 3 : 6] = order[rank % 3 : 6][::-1]
        begun = vote.open(like(), backwards=True)
        for index in order:
            begun.put(index, made[index])
        votes = begun.close()
        for _ in votes.arrivals():
            pass
        results.append(outcome(votes))
    return results


def play(rank):
    wrong = []
    for kind, rules in [*((MajorityVote, rules) for rules in RULES), (StochasticVote, {})]:
        expected = serial(kind, rules, rank)
        for way, topology, parameters in itertools.product(
            (streamed, opened), ("one_phase", "two_phase"), (1, 600, 3000)
        ):
            got = way(kind, rules, rank, topology, parameters)
            if not all(same(a, b) for a, b in zip(expected, got, strict=True)):
                wrong.append((kind.__name__, rules, way.__name__, topology, parameters))
    return wrong, [outcome[0] for outcome in expected]


def same(first, second):
    signs = all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    return signs and first[1:3] == second[1:3] and repr(first[3]) == repr(second[3])


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_every_way_gives_the_serial_outcome(workers):
    results = run_workers(play, workers, timeout=100)
    assert [wrong for wrong, _ in results] == [[]] * workers
    for _, signs in results:
        for step, expected in zip(signs, results[0][1], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(step, expected, strict=True))


def memory(rank):
    vote, sizes = MajorityVote(bucket_parameters=600), []
    for step in range(1000):
        vote(directions(rank, step % 5), like())
        if step % 200 == 199:
            buffers = [exchange._buffers for exchange in next(iter(vote._box._ballots.values()))._exchanges]
            flat = {tensor.data_ptr(): tensor.numel() for each in buffers for tensor in each._flat.values()}
            sizes.append((sorted(flat.items()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
    return sizes


def test_nothing_grows():
    for sizes in run_workers(memory, 2):
        (first, _), *_, (last, peak) = sizes
        assert first == last  # the same memory, not only as much
        assert peak <= sizes[1][1] + 512  # KiB in 600 steps


def part(rank):
    shapes = [torch.zeros(5000), torch.zeros(3000 + (rank == 1))]
    vote = MajorityVote(bucket_parameters=1000)
    try:
        vote([torch.ones_like(shape) for shape in shapes], shapes)
    except RuntimeError as error:
        first = str(error)
    vote.step = rank
    try:
        vote([torch.ones(5000)], [torch.zeros(5000)])
    except RuntimeError as error:
        second = str(error)
    vote.step = 7  # in step again: nothing of the failed votes is left in the group
    votes = vote([torch.full((5000,), -1.0)], [torch.zeros(5000)])
    return first, second, int(votes.signs(0).sum())


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_that_disagree_are_told_so_and_may_go_on(workers):
    for first, second, total in run_workers(part, workers):
        assert "do not vote on the same tensors" in first
        assert "at step" in second or "the same step" in second
        assert total == -5000


def late(rank):
    vote = MajorityVote(bucket_parameters=1000)
    vote([torch.ones(5000)], [torch.zeros(5000)])
    vote.step = 1 + rank
    vote([torch.ones(5000)], [torch.zeros(5000)])


def test_a_worker_at_another_step_is_named():
    with pytest.raises(WorkerError, match="rank 1 is at step 2 where this rank is at step 1"):
        run_workers(late, 3)


@pytest.mark.parametrize("buckets", [1, 2, 3, 4, 5, 9])
def test_schedule(buckets):
    order = list(schedule(buckets))
    assert sorted(order) == sorted(
        (what, k) for what in ("send", "decide", "receive") for k in range(buckets)
    )
    for bucket in range(buckets):
        send, decide, receive = (order.index((what, bucket)) for what in ("send", "decide", "receive"))
        assert send < decide < receive
        if bucket + AHEAD < buckets:  # the next ones go before the first is waited for
            assert order.index(("send", bucket + AHEAD - 1)) < decide < order.index(("send", bucket + AHEAD))
        if bucket + BEHIND <= buckets - 1:
            assert order.index(("decide", bucket + BEHIND - 1)) < receive
        if bucket + LANES < buckets:  # its buffers are free again
            assert receive < order.index(("send", bucket + LANES))


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize("parameters", [1, 100, 4096, None])
def test_buckets_cover_the_plane(workers, parameters):
    layout = Layout.of(like())
    buckets = cut(layout, workers, parameters)
    assert buckets[0].start == 0
    for one, other in itertools.pairwise(buckets):
        assert one.stop == other.start
        assert one.size * 8 >= (parameters or SMALLEST)
    assert layout.num_bytes <= buckets[-1].stop < layout.num_bytes + 8 * workers
    for index in range(len(SHAPES)):
        holders = [bucket for bucket in buckets if bucket.first <= index < bucket.last]
        assert holders
        part = layout.part(index)
        assert holders[0].start <= part.start
        assert part.stop <= holders[-1].stop
    for bucket in buckets:
        assert bucket.size == workers * bucket.shard
        assert bucket.shard % 8 == 0


def test_large_models_get_large_buckets():
    layout = Layout.of([torch.empty(10**9, device="meta")])
    assert len(cut(layout, 2, None)) <= MOST


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"topology": "ring"}, "topology must be one of"),
        ({"bucket_parameters": 0}, "bucket_parameters must be at least 1, got 0"),
        ({"bucket_parameters": 1.5}, "bucket_parameters must be an int or None, got 1.5"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        MajorityVote(**arguments)
