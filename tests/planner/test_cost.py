"""The formulas, against numbers worked out by hand and bytes that are really sent."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from lightning_signvr.optimizers import EFSignum, SignOptimizer, Signum
from lightning_signvr.planner import METHODS, Cluster, Costs, Link, Method, Problem, break_even, predict
from lightning_signvr.planner.breakeven import at_speed
from lightning_signvr.planner.cost import all_reduce_seconds
from tests.workers import run_workers

FREE = Costs(0, 0, 0, 0, 0, 0)
PLAIN = Method(copies=0)
SHAPES = [(1000, 1000), (24,)]  # 4.0 MB: one DDP bucket, of which nothing is hidden


def problem(
    cluster: Cluster,
    compute: float = 0.3,
    costs: Costs = FREE,
    method: Method = PLAIN,
    shapes: list[tuple[int, ...]] = SHAPES,
) -> Problem:
    return Problem(shapes, cluster, compute, method, costs)


def test_all_reduce_is_a_ring() -> None:
    # 4 workers: 6 hops of a quarter of 8 MB at 1 MB/s, and 6 latencies for each of 3 messages
    assert all_reduce_seconds(Cluster(4, Link(1e6, 0.01)), 8e6, 3) == pytest.approx(6 * 2 + 18 * 0.01)
    assert all_reduce_seconds(Cluster(4, Link(1e6, 0.01, 2e6)), 8e6) == pytest.approx(6 + 6 * 0.01)
    assert all_reduce_seconds(Cluster(1, Link(1e6, 0.01)), 8e6) == 0


def test_ddp_without_anything_to_hide_is_a_sum() -> None:
    steps = predict(problem(Cluster(2, Link(1e6, 0.01))))
    assert steps["fp32"].seconds == pytest.approx(0.3 + 4 * 1_000_024 / 1e6 + 2 * 0.01)
    assert steps["bf16"].seconds == pytest.approx(0.3 + 2 * 1_000_024 / 1e6 + 2 * 0.01)
    # factors of 4 (1000 + 1000) numbers and the vector as it is, in three messages
    assert steps["powersgd"].seconds == pytest.approx(0.3 + 4 * 8024 / 1e6 + 6 * 0.01)
    assert [steps[name].bytes_sent for name in ("fp32", "bf16", "powersgd")] == [4_000_096, 2_000_048, 32_096]
    assert all(steps[name].overlapped for name in ("fp32", "bf16", "powersgd"))


def test_ddp_hides_what_it_can_behind_backward() -> None:
    shapes = [(1024, 1024)] * 100  # 400 MiB in 16 buckets of 25 MiB, of which the last cannot be hidden
    size, compute = 400 * 2**20, 3.0
    for rate, visible in (
        (size / 1.0, 1 / 16),  # 1 s of exchange: all but the last bucket is hidden by 2 s of backward
        (size / 20.0, 20 - 2),  # 20 s: backward is hidden by it
    ):
        cluster = Cluster(2, Link(rate, 0.0))
        assert predict(problem(cluster, compute, shapes=shapes))["fp32"].seconds == pytest.approx(3 + visible)
    half = dataclasses.replace(cluster, overlap=0.5)
    assert predict(problem(half, compute, shapes=shapes))["fp32"].seconds == pytest.approx(3 + 20 - 1)
    none = dataclasses.replace(cluster, overlap=0.0)
    assert predict(problem(none, compute, shapes=shapes))["fp32"].seconds == pytest.approx(3 + 20)


def test_a_large_first_tensor_is_all_of_the_last_bucket() -> None:
    shapes = [(30_000, 1024), *[(1024, 1024)] * 10]
    cluster = Cluster(2, Link(4 * (30_000 + 10_240) * 1024 / 1.0, 0.0))
    steps = predict(problem(cluster, 30.0, shapes=shapes))
    assert steps["fp32"].exchange == pytest.approx(30_000 / 40_240)


def test_low_rank_is_only_for_matrices_that_it_halves() -> None:
    cluster = Cluster(2, Link(1e6, 0.0))
    for shape, numbers in (
        ((64, 64, 3, 3), 4 * (64 + 576)),
        ((16, 16), 256),  # factors would be 128: not less than half
        ((17, 17), 4 * 34),
        ((3, 1000), 3000),  # factors would be larger
        ((1000,), 1000),
        ((), 1),
    ):
        assert problem(cluster, shapes=[shape]).low_rank_numbers == numbers, shape


def test_vote_is_a_sum_of_all_its_parts() -> None:
    costs = Costs(pack=1e-6, tally=2e-6, apply=3e-6, elementwise=10e-6, low_rank=0, per_tensor=0.5)
    method = Method(copies=2, gradients=2, passes=3)
    step = predict(problem(Cluster(4, Link(1e6, 0.01)), costs=costs, method=method))["vote"]
    assert step.compute == pytest.approx(2 * 0.3)
    assert step.local == pytest.approx(1_000_024 * 36e-6 + 2 * 0.5)
    # 125,003 bytes of bits make shards of 31,256; 32 + 8 bytes of header up, 40 down
    assert step.bytes_sent == 3 * (31_256 + 40) + 3 * (31_256 + 40)
    assert step.exchange == pytest.approx(step.bytes_sent / 1e6 + (1 + 3) * 0.01)
    assert not step.overlapped


def test_one_worker_exchanges_nothing() -> None:
    for step in predict(problem(Cluster(1, Link(1e6, 0.01)))).values():
        assert step.seconds == pytest.approx(0.3)
        assert step.bytes_sent == 0


def test_workers_of_a_node_share_its_link() -> None:
    inside, between = Link(1e9, 1e-3), Link(1e6, 0.01)
    steps = predict(problem(Cluster(8, between, 4, inside)))
    shard = 15_632  # 125,003 bytes in 8 shards
    # all 4 workers of a node send to 4 others; then a ring, of which one edge leaves the node
    up, down = 4 * 4 * (shard + 40) / 1e6 + 0.01, 7 * ((shard + 40) / 1e6 + 0.01)
    assert steps["vote"].exchange == pytest.approx(up + down)
    assert steps["fp32"].exchange == pytest.approx(2 * 7 / 8 * 4.000096 + 14 * 0.01)


def test_hierarchical_vote_sends_two_bits_per_node() -> None:
    inside, between = Link(1e9, 1e-3), Link(1e6, 0.01)
    step = predict(problem(Cluster(8, between, 4, inside)))["hierarchical"]
    slice_shard = 15_632  # a quarter of 125,003 bytes, in 2 shards
    within = 3 * (4.000096e6 / 4 / 1e9 + 1e-3) + 3 * (125_003 / 4 / 1e9 + 1e-3)
    across = 4 * (2 * slice_shard + 40) / 1e6 + 2 * 0.01  # two nodes vote in one phase
    assert step.exchange == pytest.approx(within + across)
    assert across < 1.02 * 2 / 2 * 125_003 / 1e6 + 2 * 0.01  # 2 (m - 1) / m bits per parameter and node
    assert "hierarchical" not in predict(problem(Cluster(8, between)))


def test_all_workers_on_one_node_use_only_its_link() -> None:
    slow, fast = Link(1.0, 1.0), Link(1e9, 0.0)
    for step in predict(problem(Cluster(4, slow, 4, fast))).values():
        assert step.exchange < 0.1


@pytest.mark.parametrize("workers", [0, -1])
def test_too_few_workers_are_refused(workers: int) -> None:
    with pytest.raises(ValueError, match="workers must be at least 1"):
        Cluster(workers, Link(1e6, 0))


@pytest.mark.parametrize("per_node", [0, 3, 8])
def test_workers_per_node_must_divide(per_node: int) -> None:
    with pytest.raises(ValueError, match=f"workers_per_node must divide the 4 workers, got {per_node}"):
        Cluster(4, Link(1e6, 0), per_node)


# -- break-even -------------------------------------------------------------------------------------

COSTS = Costs()


@pytest.mark.parametrize("other", ["fp32", "bf16"])
@pytest.mark.parametrize("workers", [2, 16])
def test_both_take_equally_long_at_break_even(other: str, workers: int) -> None:
    planned = problem(Cluster(workers, Link(125e6, 1e-4)), 0.4, COSTS, METHODS["SSVR"], [(1024, 1024)] * 60)
    speed = break_even(planned, other)
    assert 0 < speed < math.inf
    steps = predict(at_speed(planned, speed))
    assert steps["vote"].seconds == pytest.approx(steps[other].seconds, rel=1e-6)
    slower, faster = predict(at_speed(planned, 0.7 * speed)), predict(at_speed(planned, 1.4 * speed))
    assert slower["vote"].seconds < slower[other].seconds
    assert faster["vote"].seconds > faster[other].seconds


def test_break_even_with_an_advantage() -> None:
    planned = problem(Cluster(2, Link(125e6, 1e-4)), 0.4, COSTS, METHODS["SSVR"], [(1024, 1024)] * 60)
    speed = break_even(planned, "fp32", 1.5)
    assert speed < break_even(planned, "fp32")
    steps = predict(at_speed(planned, speed))
    assert steps["fp32"].seconds == pytest.approx(1.5 * steps["vote"].seconds, rel=1e-6)


def test_break_even_where_there_is_none() -> None:
    cluster = Cluster(2, Link(125e6, 0.0))
    assert break_even(problem(cluster), "fp32") == math.inf  # signs that cost nothing
    slow_link_hub = Cluster(512, Link(1e9, 0.0), 256)  # 256 workers send their votes through one link
    assert break_even(problem(slow_link_hub, costs=COSTS), "fp32") == 0.0


def test_measured_speeds_keep_their_ratio() -> None:
    planned = problem(Cluster(2, Link(1e6, 0.01, 2e6)))
    assert at_speed(planned, 1e6) == planned
    assert at_speed(planned, 3e6).cluster.link == Link(3e6, 0.01, 6e6)


# -- bytes ------------------------------------------------------------------------------------------


def _bytes_of_a_step(rank: int, topology: str) -> list[int]:
    """Bytes that Signum and EFSignum send in their last of some steps."""
    sent = []
    for make in (Signum, EFSignum):
        parameters = [nn.Parameter(torch.zeros(shape)) for shape in SMALL]
        optimizer: SignOptimizer = make(parameters)
        optimizer.vote.topology = topology
        totals = []
        for _ in range(3):
            for parameter in parameters:
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
            totals.append(optimizer.vote.traffic.bytes_sent)
        sent.append(totals[-1] - totals[-2])  # the first step compares layouts, too
    return sent


SMALL = [(50, 30), (50,), (11, 50), (11,), (3, 11), (3,)]


@pytest.mark.parametrize(
    ("workers", "latency", "topology"), [(2, 0.0, "auto"), (3, 0.0, "two_phase"), (3, 1.0, "one_phase")]
)
def test_bytes_are_those_of_the_library(workers: int, latency: float, topology: str) -> None:
    cluster = Cluster(workers, Link(1e6, latency))
    expected = [
        predict(problem(cluster, method=METHODS[name], shapes=SMALL))["vote"].bytes_sent
        for name in ("Signum", "EFSignum")
    ]
    assert run_workers(_bytes_of_a_step, workers, topology) == [expected] * workers


def test_bytes_of_many_buckets() -> None:
    shapes = [(3000, 1000), (3000, 1000)]
    step = predict(problem(Cluster(2, Link(1e6, 0.0)), shapes=shapes))["vote"]
    assert step.bytes_sent == 6_000_000 // 8 + 3 * 40  # three buckets of 2**21 parameters or less
    costs = Costs(pack=1e-6, tally=0, apply=0, elementwise=0, low_rank=0, per_tensor=0)
    busy = predict(problem(Cluster(2, Link(1e6, 0.0)), costs=costs, shapes=shapes))["vote"]
    # 6 s of packing hide two thirds of 0.75 s of exchange
    assert busy.exchange == pytest.approx(step.bytes_sent / 1e6 / 3)
