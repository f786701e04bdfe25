"""Nodes as voters: the outcome is the majority of the signs of the nodes' means, to the last bit."""

from __future__ import annotations

import copy
import itertools
import os
import platform
from dataclasses import asdict
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator

from lightning_signvr import Signum, SignVoteMonitor, SignVoteStrategy
from lightning_signvr.accelerate import sign_vote
from lightning_signvr.fabric import SignVoteStrategy as FabricSignVoteStrategy
from lightning_signvr.optimizers import EFSignum
from lightning_signvr.voting import LocalVote, MajorityVote, MeanVote, ScaledMeanVote, StochasticVote
from lightning_signvr.voting.nodes import check_sizes, workers_of_each
from tests.strategies.helpers import Regression, batches, fit, parameters_of
from tests.voting.oracle import ALL_RULES, SHAPES, STORY, expected_outcome, outcome_of, parameters
from tests.workers import run_workers

SOME_RULES, SHORT = ALL_RULES[::4], STORY[6:14]  # each rule once; what the rules decide
FORMS = {
    "2x2": (2, 2, ALL_RULES, SHORT),  # nodes, workers of each, rules, what happens
    "2x1": (2, 1, SOME_RULES, STORY),
    "1x2": (1, 2, SOME_RULES, STORY),
    "3x1": (3, 1, SOME_RULES, STORY),
    "2x3": (2, 3, SOME_RULES[:1], STORY),
}


def node_directions(directions, nodes, per_node, step):
    """Each node's: what its workers say, added in their order; None where none of them says anything."""
    everyones = [directions(worker, step) for worker in range(nodes * per_node)]
    added = []
    for node in range(nodes):
        mine = everyones[node * per_node : (node + 1) * per_node]
        sums = []
        for index, shape in enumerate(SHAPES):
            given = [each[index] for each in mine]
            total = torch.zeros(shape)
            for place, direction in enumerate(given):
                value = torch.zeros(shape) if direction is None else direction.float()
                total = value if place == 0 else total + value
            sums.append(None if all(direction is None for direction in given) else total)
        added.append(sums)
    return added


def play(rank, per_node, rules, story, **options):
    vote = MajorityVote(seed=5, voters="node", workers_per_node=per_node, **rules, **options)
    outcomes, planes = [], []
    for step, directions in enumerate(story):
        votes = vote(directions(rank, step), like=parameters())
        outcomes.append(asdict(outcome_of(votes)))
        planes.append(votes.negative.tolist())
    return outcomes, planes, votes.workers


def check(results, nodes, per_node, rules, story):
    expected = [
        asdict(expected_outcome(node_directions(directions, nodes, per_node, step), step, seed=5, **rules))
        for step, directions in enumerate(story)
    ]
    for rank, (outcomes, planes, voters) in enumerate(results):
        assert voters == nodes
        assert planes == results[0][1], rank
        for step, (outcome, wanted) in enumerate(zip(outcomes, expected, strict=True)):
            assert outcome == wanted, (rank, step, story[step].__name__)


def play_rules(rank, per_node, several, story):
    return [play(rank, per_node, rules, story) for rules in several]


@pytest.mark.parametrize("form", FORMS)
def test_the_outcome_is_the_majority_of_the_nodes(form):
    nodes, per_node, several, story = FORMS[form]
    everyones = run_workers(play_rules, nodes * per_node, per_node, several, story, timeout=100)
    for results, rules in zip(zip(*everyones, strict=True), several, strict=True):
        check(results, nodes, per_node, rules, story)


RULES = {"ties": "random", "zeros": "abstain"}
WAYS = list(itertools.product(("one_phase", "two_phase"), (1, 600)))


def play_ways(rank):
    return [play(rank, 2, RULES, STORY, topology=way, bucket_parameters=size) for way, size in WAYS]


def test_buckets_and_topologies_do_not_matter():
    for results in zip(*run_workers(play_ways, 4, timeout=100), strict=True):
        check(results, 2, 2, RULES, STORY)


# -- beside the plain call ------------------------------------------------------------------------


def in_order(rank):
    vote = MajorityVote(voters="node", workers_per_node=3)
    return vote([torch.full((9,), [1e8, 1.0, -1e8][rank])]).signs(0).tolist()


def test_workers_are_added_in_their_order():
    # (1e8 + 1) - 1e8 is 0 in float32, (1e8 - 1e8) + 1 is not
    assert run_workers(in_order, 3) == [[0.0] * 9] * 3


def closer_looks(rank):
    """What nodes vote, and the same as a flat vote of two workers who say what the nodes say."""
    few = dist.new_group([0, 1])
    nodes = MajorityVote(seed=5, voters="node", workers_per_node=2, bucket_parameters=300)
    flat = None if rank > 1 else MajorityVote(few, seed=5, bucket_parameters=300)
    rows = []
    for step, directions in enumerate(STORY):
        nodes.detailed = step % 2 == 0
        begun = nodes.open(parameters(), backwards=True)
        for index, direction in reversed(list(enumerate(directions(rank, step)))):
            begun.put(index, direction)
        votes = begun.close()
        for _ in votes.arrivals():
            pass
        looks = [None if votes.details is None else votes.details.to_numbers().tolist()]
        signs = [outcome_of(votes).signs]
        if flat is not None:
            flat.detailed = nodes.detailed
            voted = flat(node_directions(directions, 2, 2, step)[rank], like=parameters())
            looks.append(None if voted.details is None else voted.details.to_numbers().tolist())
            signs.append(outcome_of(voted).signs)
        rows.append((looks, signs))
    return rows


def test_details_are_those_of_the_nodes_also_from_the_last_tensor_to_the_first():
    first, second, *others = run_workers(closer_looks, 4)
    for step, rows in enumerate(zip(first, second, *others, strict=True)):
        looks, signs = zip(*rows, strict=True)
        assert all(each == looks[0][0] for of_rank in looks for each in of_rank)
        assert (looks[0][0] is None) == bool(step % 2)
        assert all(each == signs[0][0] for of_rank in signs for each in of_rank)


def costs(rank, shape, per_node):
    vote = MajorityVote(voters="node", workers_per_node=per_node, topology="two_phase")
    vote([torch.randn(shape)])
    before = vote.traffic.bytes_sent, vote.traffic.bytes_inside
    vote([torch.randn(shape)])
    sent, inside = vote.traffic.bytes_sent - before[0], vote.traffic.bytes_inside - before[1]
    return sent - inside, inside, vote.traffic.bytes_received


@pytest.mark.parametrize(("nodes", "per_node"), [(2, 2), (3, 2), (1, 2)])
def test_traffic(nodes, per_node):
    numel = 480_000
    everyones = run_workers(costs, nodes * per_node, (numel,), per_node)
    between, inside, received = map(list, zip(*everyones, strict=True))
    per_node_bits = [8 * sum(between[k : k + per_node]) for k in range(0, len(between), per_node)]
    headers = 8 * per_node * (nodes - 1) * (32 + 40 + 16)
    for bits in per_node_bits:
        assert 0 <= bits - 2 * (nodes - 1) / nodes * numel <= headers
    share = (per_node - 1) / per_node
    for number in inside:  # numbers there, signs back
        assert 0 <= 8 * number - numel * (32 * share + share) <= 8 * 300
    assert len(set(received)) == 1


# -- training -------------------------------------------------------------------------------------

LR, MOMENTUM, STEPS = 0.01, 0.9, 6


def gradients_of(values, rank, step):
    """Of a smooth function of each worker's own."""
    generator = torch.Generator().manual_seed(31 * step + rank)
    return [torch.randn(value.shape, generator=generator) + value / (1 + rank) for value in values]


def train(rank, overlap):
    values = [torch.nn.Parameter(torch.ones(shape)) for shape in SHAPES]
    vote = MajorityVote(ties="zero", voters="node", workers_per_node=2, bucket_parameters=256)
    optimizer = Signum(values, lr=LR, momentum=MOMENTUM, weight_decay=0.1, vote=vote)
    if overlap:
        optimizer.overlap()
    for step in range(STEPS):
        optimizer.zero_grad()
        gradients = gradients_of([value.detach() for value in values], rank, step)
        used = [index for index in range(len(values)) if (index + rank + step) % 4]
        sum((values[index] * gradients[index]).sum() for index in used).backward()
        optimizer.step()
    return [value.detach().numpy() for value in values]


def simulate(nodes, per_node):
    values = [torch.ones(shape) for shape in SHAPES]
    momenta = [[torch.zeros(shape) for shape in SHAPES] for _ in range(nodes * per_node)]
    for step in range(STEPS):
        gradients = [gradients_of(values, rank, step) for rank in range(nodes * per_node)]
        for index, value in enumerate(values):
            total, present = torch.zeros(value.shape), False
            for node in range(nodes):
                mean = torch.zeros(value.shape)
                for rank in range(node * per_node, (node + 1) * per_node):
                    if (index + rank + step) % 4:
                        momentum = momenta[rank][index]
                        momentum.mul_(MOMENTUM).add_(gradients[rank][index], alpha=1 - MOMENTUM)
                        mean += momentum
                        present = True
                total += mean.sign()
            if present:
                value.mul_(1 - LR * 0.1).add_(total.sign(), alpha=-LR)
    return [value.numpy() for value in values]


@pytest.mark.parametrize("overlap", [False, True], ids=["after", "in_backward"])
def test_signum_is_as_simulated(overlap):
    expected = simulate(2, 2)
    for values in run_workers(train, 4, overlap):
        for value, other in zip(values, expected, strict=True):
            np.testing.assert_allclose(value, other, rtol=1e-6)


def lightning(rank, options):
    module = Regression(lambda parameters: Signum(parameters, lr=LR))
    strategy = SignVoteStrategy(**options)
    fit(module, batches(rank, 6), strategy, log_every_n_steps=2, callbacks=[SignVoteMonitor()])
    (vote,) = strategy.votes
    return parameters_of(module), vote.workers, vote.last.workers, vote.traffic.bytes_inside


def test_lightning():
    options = {"voters": "node", "workers_per_node": 2}
    serial = run_workers(lightning, 4, options)
    overlapped = run_workers(lightning, 4, {**options, "overlap": True, "bucket_parameters": 16})
    flat = run_workers(lightning, 4, {})
    for values, workers, voters, inside in (*serial, *overlapped):
        assert (values == serial[0][0]).all()
        assert (workers, voters) == (4, 2)
        assert inside > 0
    assert (flat[0][0] != serial[0][0]).any()
    assert flat[0][1:] == (4, 4, 0)


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "arguments", "error", "message"),
    [
        (MajorityVote, {"voters": "host"}, ValueError, "voters must be one of 'worker', 'node', got 'host'"),
        (MajorityVote, {"workers_per_node": 2}, ValueError, "workers_per_node=2 has no effect"),
        (MajorityVote, {"voters": "node", "workers_per_node": 0}, ValueError, "at least 1, got 0"),
        (MajorityVote, {"voters": "node", "workers_per_node": 2.0}, TypeError, "an int or None, got 2.0"),
        (MeanVote, {"voters": "node"}, ValueError, "needs a majority, and MeanVote"),
        (ScaledMeanVote, {"voters": "node"}, ValueError, "needs a majority, and ScaledMeanVote"),
        (StochasticVote, {"voters": "node"}, ValueError, "needs a majority, and StochasticVote"),
    ],
)
def test_bad_arguments(kind, arguments, error, message):
    with pytest.raises(error, match=message):
        kind(**arguments)


@pytest.mark.parametrize(
    "entry",
    [SignVoteStrategy, FabricSignVoteStrategy, partial(sign_vote, Accelerator(cpu=True))],
    ids=["lightning", "fabric", "accelerate"],
)
def test_every_entry_hands_them_on(entry):
    with pytest.raises(ValueError, match="voters must be one of"):
        entry(voters="host")
    with pytest.raises(ValueError, match="workers_per_node=2 has no effect"):
        entry(workers_per_node=2)


def test_a_lone_worker_is_a_node():
    vote = MajorityVote(voters="node")
    assert vote([torch.tensor([-1.0, 0.0])]).signs(0).tolist() == [-1.0, 0.0]
    assert LocalVote(voters="node")([torch.tensor([-1.0, 0.0])]).workers == 1
    with pytest.raises(ValueError, match='scales are numbers of workers, and with voters="node"'):
        vote([torch.ones(3)], scales=[1.0])


@pytest.mark.parametrize(
    ("hosts", "message"),
    [
        ("abab", "host 'a' has ranks 0, 2: number the ranks host by host"),
        ("aab", "'a' has 2, 'b' has 1: start as many on each"),
    ],
)
def test_bad_hosts(hosts, message):
    with pytest.raises(ValueError, match=message):
        workers_of_each(list(hosts))


@pytest.mark.parametrize(("hosts", "size"), [("a", 1), ("aabbcc", 2), ("abc", 1), ("aaa", 3)])
def test_hosts(hosts, size):
    assert workers_of_each(list(hosts)) == size


def test_sizes_must_agree():
    assert check_sizes([0, 0]) == 0
    with pytest.raises(ValueError, match="is 2 on rank 0, and 3 on rank 1"):
        check_sizes([2, 3])


def errors(rank):
    """The same story on all ranks, each time another mistake; and a good vote in the end."""
    told = []

    def attempt(vote, step):
        vote.step = step
        try:
            vote([torch.ones(5000)])
        except (RuntimeError, ValueError) as error:
            told.append(str(error))
        else:
            told.append("")

    attempt(MajorityVote(voters="node", workers_per_node=3), 0)
    attempt(MajorityVote(voters="node", workers_per_node=2 + 2 * (rank == 3)), 0)
    attempt(MajorityVote(voters="node" if rank else "worker"), 0)
    vote = MajorityVote(voters="node", workers_per_node=2, bucket_parameters=1000)
    attempt(vote, 0)
    attempt(vote, 4 + (rank == 3))  # one worker of the second node
    attempt(vote, 6)
    attempt(vote, 7 + (rank > 1))  # the second node
    attempt(vote, 9)
    return told


def test_workers_that_disagree_are_told_so_and_may_go_on():
    for rank, told in enumerate(run_workers(errors, 4)):
        assert "4 workers are no multiple of workers_per_node=3" in told[0]
        assert "do not vote on the same tensors by the same rules" in told[1]
        assert "do not vote on the same tensors by the same rules" in told[2]
        mixed = "the workers of node 1 are at steps 4, 5" if rank > 1 else "where this rank is at step 4"
        assert mixed in told[4]
        assert "same step" in told[6] or "is at step" in told[6]
        assert told[3] == told[5] == told[7] == ""


def surroundings(rank):
    """What is known of nodes from torchrun, from host names, and in a part of the ranks."""
    halves = [dist.new_group(ranks) for ranks in ([0, 1], [2, 3])]
    sizes = []
    for group in (None, halves[rank // 2]):
        vote = MajorityVote(group, voters="node")
        vote([torch.ones(9)])
        sizes.append((vote.workers_per_voter, vote.last.workers))
    platform.node = lambda: f"host-{rank // 2}"
    for said in ("2", ""):
        os.environ["LOCAL_WORLD_SIZE"] = said
        vote = MajorityVote(voters="node")
        vote([torch.ones(9)])
        again = copy.deepcopy(vote)
        again([torch.ones(9)])
        sizes.append((again.workers_per_voter, again.last.workers))
    return sizes


def test_nodes_are_found():
    for sizes in run_workers(surroundings, 4):
        assert sizes == [(4, 1), (2, 1), (2, 2), (2, 2)]


def scaled(rank):
    module = Regression(lambda parameters: EFSignum(parameters, lr=LR))
    try:
        fit(module, batches(rank, 2), SignVoteStrategy(voters="node"))
    except ValueError as error:
        return str(error)
    return ""


def test_methods_that_send_scales_are_refused():
    for message in run_workers(scaled, 2):
        assert 'voters="node" needs a majority, and ScaledMeanVote' in message
