"""Predicted time and bytes of a training step, by documented formulas.

With n workers, d parameters, link speed B and latency L:

* An all-reduce of s bytes is a ring: ``2 (n - 1) / n * s / B + 2 (n - 1) L`` (L once more for each of
  DDP's buckets).
* DDP exchanges while it computes. What can be hidden is at most the backward pass, 2/3 of compute, and not
  the last bucket, whose gradients are ready when backward ends: ``step = local + exchange - overlap *
  min(backward, exchange without the last bucket)``, which with ``overlap = 1`` is the larger of the two,
  roughly, and with 0 their sum. Besides the exchange DDP copies gradients into and out of buckets.
* The sign vote runs after backward (unless it is told to overlap), so ``step = gradients * compute + local +
  exchange``, less what its k buckets hide of each other, ``overlap * (1 - 1/k) * min(local, exchange)``.
  ``local`` is estimate, pack, tally and apply. In two phases ``all_to_all`` sends ``(n - 1) / n`` of
  ``d / 8`` bytes at once and ``all_gather`` as many in ``n - 1`` hops; in one phase, which two workers take,
  ``all_gather`` sends all of it. The bytes are those of the library's own headers and padding. Exact zeros,
  which abstain, are assumed to be rare.
* PowerSGD sends ``rank (rows + columns)`` float32 per matrix in three all-reduces instead of one, and
  vectors, and matrices that this would not halve, as they are.
* With several workers on a node, its link carries one edge of a ring, but ``all_to_all`` of all of them.
  Hierarchical voting (``voters="node"``) adds float32 inside a node, lets each worker vote across nodes on
  its own slice, and gathers the outcome inside the node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from math import prod

from lightning_signvr.planner.figures import Cluster, Costs, Link
from lightning_signvr.planner.methods import Method
from lightning_signvr.signs import packed_size
from lightning_signvr.voting.buckets import cut
from lightning_signvr.voting.header import BallotHeader, OutcomeHeader
from lightning_signvr.voting.layout import Layout
from lightning_signvr.voting.topology import LARGEST_TO_COPY
from lightning_signvr.voting.topology import Link as VotersLink

BACKWARD = 2 / 3
"""Share of the backward pass in compute."""

BUCKET = 25 * 2**20
"""Bytes of DDP's buckets."""

RANK = 4
"""Of PowerSGD."""

OPTIMIZER_PASSES = 3
"""Elementwise operations of a fused AdamW or SGD with momentum."""

BUCKET_PASSES = 2
"""Elementwise operations of DDP's copies into buckets and out of them."""

NODE_PASSES = 2
"""Elementwise operations of a vote of nodes: into the bucket, and adding up."""

CAST_PASSES = 2
"""Elementwise operations of a compression hook that rounds to 16 bits and back."""


@dataclass(frozen=True)
class Problem:
    """What is planned.

    Attributes:
        shapes: of the model's parameters, in its order.
        cluster: workers and links.
        compute: seconds of a forward and a backward pass.
        method: the sign optimizer.
        costs: of the machine.
    """

    shapes: Sequence[tuple[int, ...]]
    cluster: Cluster
    compute: float
    method: Method
    costs: Costs = field(default_factory=Costs)

    @cached_property
    def parameters(self) -> int:
        return sum(map(prod, self.shapes))

    @cached_property
    def packed_bytes(self) -> int:
        """Of one bit per parameter; each tensor starts on a byte of its own."""
        return sum(packed_size(prod(shape)) for shape in self.shapes)

    @cached_property
    def low_rank_numbers(self) -> int:
        """Float32 numbers that PowerSGD sends of a gradient."""
        return sum(min(prod(shape), _low_rank_numbers(shape)) for shape in self.shapes)


@dataclass(frozen=True)
class Prediction:
    """A step's time and bytes.

    Attributes:
        name: what is exchanged and how.
        compute: seconds of forward and backward passes.
        local: seconds of everything else on the worker: packing, casting, copying, the update.
        exchange: seconds of the exchange that are not hidden behind compute.
        bytes_sent: by one worker, per step.
        overlapped: whether the exchange runs during backward (else after it).
    """

    name: str
    compute: float
    local: float
    exchange: float
    bytes_sent: float
    overlapped: bool

    @property
    def seconds(self) -> float:
        return self.compute + self.local + self.exchange


def predict(problem: Problem) -> dict[str, Prediction]:
    """Predictions of fp32, bf16, powersgd and vote, and of hierarchical where nodes have several workers.

    Example:
        >>> from lightning_signvr.planner import Link
        >>> cluster = Cluster(2, Link(12.5e6, 1e-4))
        >>> steps = predict(Problem([(1000, 1000)], cluster, 0.01, Method(copies=1, passes=2)))
        >>> [f"{1e3 * step.seconds:.0f}" for step in steps.values()]
        ['331', '172', '20', '21']
    """
    parameters = problem.parameters
    predictions = {
        "fp32": _ddp(problem, "fp32 all-reduce", 4 * parameters, 0.0),
        "bf16": _ddp(problem, "bf16 all-reduce", 2 * parameters, CAST_PASSES * problem.costs.elementwise),
        "powersgd": _ddp(
            problem, f"PowerSGD rank {RANK}", 4 * problem.low_rank_numbers, problem.costs.low_rank, 3
        ),
        "vote": _vote(problem),
    }
    if problem.cluster.workers_per_node > 1:
        predictions["hierarchical"] = _hierarchical_vote(problem)
    return predictions


def _ddp(problem: Problem, name: str, size: int, compression: float, rounds: int = 1) -> Prediction:
    """DDP that sends ``size`` bytes after ``compression`` seconds per parameter."""
    cluster, costs = problem.cluster, problem.costs
    passes = OPTIMIZER_PASSES + (BUCKET_PASSES if cluster.workers > 1 else 0)
    local = problem.parameters * (passes * costs.elementwise + (compression if cluster.workers > 1 else 0.0))
    whole = 4 * problem.parameters
    messages = rounds * -(-whole // BUCKET)
    exchange = all_reduce_seconds(cluster, size, messages)
    last = min(1.0, max(BUCKET, 4 * prod(problem.shapes[0])) / whole)
    hidden = cluster.overlap * min(BACKWARD * problem.compute, exchange * (1 - last))
    sent = 2 * (cluster.workers - 1) / cluster.workers * size
    return Prediction(name, problem.compute, local, exchange - hidden, sent, overlapped=True)


def all_reduce_seconds(cluster: Cluster, size: float, messages: int = 1) -> float:
    """Of ``size`` bytes in so many messages, in a ring.

    Example:
        >>> from lightning_signvr.planner import Link
        >>> all_reduce_seconds(Cluster(4, Link(1e6, 0.01)), 1e6)
        1.56
    """
    others, slowest = cluster.workers - 1, cluster.slowest
    return 2 * others * (size / cluster.workers / slowest.reduce_rate + messages * slowest.latency)


@dataclass(frozen=True)
class _Sizes:
    """Bytes that one worker sends to one other in a vote among ``voters``: up, and down.

    Attributes:
        buckets: how many there are.
    """

    up: int
    down: int
    buckets: int


def _sizes(numels: Sequence[int], voters: int, method: Method, slowest: Link) -> _Sizes:
    offsets = tuple(accumulate(map(packed_size, numels), initial=0))
    layout = Layout(tuple(numels), offsets)
    splits = not (method.scaled or method.scaled_answer or method.counted)
    buckets = cut(layout, voters, None if splits else max(1, 8 * layout.num_bytes))
    one_phase = splits and _takes_one_phase(buckets[0].size, voters, slowest)
    up = down = 0
    for bucket in buckets:
        tensors = bucket.last - bucket.first
        up += BallotHeader.size(tensors, method.scaled) + (bucket.size if one_phase else bucket.shard)
        if not one_phase:
            bits = method.bits_back(voters)
            down += OutcomeHeader.size(tensors, method.scaled_answer) + bits * bucket.shard
    return _Sizes(up, down, len(buckets))


def _takes_one_phase(size: int, voters: int, slowest: Link) -> bool:
    """As :func:`~lightning_signvr.voting.topology.choose_route` does, by the figures of the link."""
    if voters <= 2:
        return voters == 2
    link = VotersLink(slowest.latency, 1 / slowest.bytes_per_second)
    one, two = (link.seconds(route, size, voters) for route in ("one_phase", "two_phase"))
    return size <= LARGEST_TO_COPY and one < two


def _local_costs(problem: Problem, share: float) -> float:
    """Of a vote: estimate, pack a ``share`` of the parameters, count as many votes, apply all of it."""
    costs, method = problem.costs, problem.method
    per_parameter = method.passes * costs.elementwise + share * (costs.pack + costs.tally) + costs.apply
    return problem.parameters * per_parameter + len(problem.shapes) * costs.per_tensor


def _vote(problem: Problem) -> Prediction:
    cluster = problem.cluster
    others, local_others = cluster.workers - 1, cluster.workers_per_node - 1
    remote = cluster.workers - cluster.workers_per_node
    numels, slowest = [prod(shape) for shape in problem.shapes], cluster.slowest
    sizes = _sizes(numels, cluster.workers, problem.method, slowest)
    local, exchange = _local_costs(problem, 1.0), 0.0
    if others and not sizes.down:
        exchange = others * (sizes.up / slowest.bytes_per_second + slowest.latency)
    elif others:
        through_link = cluster.workers_per_node * remote * sizes.up / cluster.link.bytes_per_second
        inside = local_others * sizes.up / cluster.node_link.bytes_per_second
        exchange = max(through_link, inside) + slowest.latency
        exchange += others * (sizes.down / slowest.bytes_per_second + slowest.latency)
    hidden = cluster.overlap * (1 - 1 / sizes.buckets) * min(local, exchange)
    return Prediction(
        "sign vote",
        problem.method.gradients * problem.compute,
        local,
        exchange - hidden,
        others * (sizes.up + sizes.down) if others else 0,
        overlapped=False,
    )


def _hierarchical_vote(problem: Problem) -> Prediction:
    cluster = problem.cluster
    nodes, per_node = cluster.nodes, cluster.workers_per_node
    numels = [8 * -(-problem.packed_bytes // per_node)]
    sizes = _sizes(numels, nodes, problem.method, cluster.link)
    inside = 0.0
    for size in (4 * problem.parameters, problem.packed_bytes):  # reduce-scatter of numbers, gather of bits
        inside += (per_node - 1) * (
            size / per_node / cluster.node_link.bytes_per_second + cluster.node_link.latency
        )
    between = (nodes - 1) * per_node * (sizes.up + sizes.down) / cluster.link.bytes_per_second
    between += (nodes if nodes > 1 else 0) * cluster.link.latency
    sent = (per_node - 1) / per_node * (4 * problem.parameters + problem.packed_bytes)
    sent += (nodes - 1) * (sizes.up + sizes.down)
    return Prediction(
        "hierarchical sign vote",
        problem.method.gradients * problem.compute,
        _local_costs(problem, 1 / per_node) + problem.parameters * NODE_PASSES * problem.costs.elementwise,
        inside + between,
        sent,
        overlapped=False,
    )


def _low_rank_numbers(shape: tuple[int, ...]) -> int:
    """Of the factors, or of the tensor itself where they would not halve it (torch's PowerSGD hook)."""
    numbers = prod(shape)
    if len(shape) < 2:
        return numbers
    rows, columns = shape[0], numbers // shape[0]
    rank = min(rows, columns, RANK)
    factors = rank * (rows + columns)
    return factors if 2 * factors < numbers else numbers
