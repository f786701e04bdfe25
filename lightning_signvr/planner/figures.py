"""What the cost model knows about a network and a machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """A network link, the same in both directions at once.

    Attributes:
        bytes_per_second: what ``all_to_all`` and ``all_gather`` of bytes get through it.
        latency: seconds of one hop of a collective on almost no data, software included.
        reduce_bytes_per_second: what an all-reduce gets through it, which also adds numbers; None for
            the same.
    """

    bytes_per_second: float
    latency: float
    reduce_bytes_per_second: float | None = None

    @property
    def reduce_rate(self) -> float:
        return self.reduce_bytes_per_second or self.bytes_per_second


@dataclass(frozen=True)
class Costs:
    """Seconds that a worker computes on a step's votes.

    The defaults are those of one core of the CPU in ``benchmarks/results/codec.md``; per_tensor and low_rank
    were measured on the same.

    Attributes:
        pack: per parameter, find its sign and whether it has one.
        tally: per parameter, count all workers' votes; each worker counts 1/n of the parameters.
        apply: per parameter, add the voted signs.
        elementwise: per parameter, one elementwise operation such as ``a.add_(b)``.
        low_rank: per parameter, PowerSGD's products of rank 4.
        per_tensor: per tensor, whatever its size.
    """

    pack: float = 0.276e-9
    tally: float = 0.069e-9
    apply: float = 0.254e-9
    elementwise: float = 0.198e-9
    low_rank: float = 6e-9
    per_tensor: float = 30e-6


@dataclass(frozen=True)
class Cluster:
    """Workers and what connects them.

    Attributes:
        workers: all of them.
        link: between nodes; all workers of a node share it.
        workers_per_node: must divide ``workers``.
        node_link: between two workers of a node.
        overlap: how much of the shorter of two is hidden where a worker computes and exchanges at
            once, from 0 to 1. Less than 1 where the cores that compute also move the bytes.

    Raises:
        ValueError: numbers of workers that cannot be.
    """

    workers: int
    link: Link
    workers_per_node: int = 1
    node_link: Link = Link(12.5e9, 20e-6)
    overlap: float = 1.0

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")
        if self.workers_per_node < 1 or self.workers % self.workers_per_node:
            raise ValueError(
                f"workers_per_node must divide the {self.workers} workers, got {self.workers_per_node}"
            )

    @property
    def nodes(self) -> int:
        return self.workers // self.workers_per_node

    @property
    def slowest(self) -> Link:
        """What a ring through all workers waits for: the slower in each respect of the links that it uses."""
        used = [self.link] if self.nodes > 1 else []
        used += [self.node_link] if self.workers_per_node > 1 else []
        return Link(
            min((link.bytes_per_second for link in used), default=self.link.bytes_per_second),
            max((link.latency for link in used), default=self.link.latency),
            min((link.reduce_rate for link in used), default=self.link.reduce_rate),
        )
