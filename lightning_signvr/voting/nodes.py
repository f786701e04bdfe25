"""Which workers share a node, and the process groups inside nodes and between them."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_signvr.voting.group import group_of_its_own, world
from lightning_signvr.voting.rules import check_optional_count
from lightning_signvr.voting.traffic import Traffic

Voters = Literal["worker", "node"]
VOTERS: Sequence[str] = get_args(Voters)

_MOST = 64  # bits in a header that speak of workers
_NAME = 64  # bytes of a host's name, as many as Linux allows


@dataclass(frozen=True, eq=False)
class Nodes:
    """Equally many workers on each node; the ranks of a node follow each other.

    Attributes:
        parent: the group of all of them.
        inside: of this node's workers.
        between: of the workers that have this one's place on the other nodes, and of this one.
        workers: on a node.
        place: of this worker on its node.
        count: of nodes.
        index: of this worker's node.
        peers: the ranks in ``between``, as the whole job numbers them.
    """

    parent: dist.ProcessGroup
    inside: dist.ProcessGroup
    between: dist.ProcessGroup
    workers: int
    place: int
    count: int
    index: int
    peers: Sequence[int]


def find_nodes(
    group: dist.ProcessGroup | None, workers_per_node: int | None, device: torch.device, traffic: Traffic
) -> Nodes | None:
    """Find the nodes and make their groups; a collective of the group's ranks.

    Args:
        group: the ranks; None for all.
        workers_per_node: None for what torchrun says (``LOCAL_WORLD_SIZE``) where the group has all ranks,
            or else for what the names of the hosts tell.
        device: of tensors that the group can exchange.
        traffic: where the bytes are counted.

    Returns:
        The nodes; None where each has one worker.

    Raises:
        ValueError: nodes of unequal size, ranks of a node that do not follow each other, ranks that were told
            different things.
    """
    rank, workers = world(group)
    size = workers_per_node or _told(workers) or 0
    sizes, hosts = _ask(size, platform.node(), workers, device, group, traffic)
    per_node = check_sizes(sizes) or workers_of_each(hosts)
    if workers % per_node:
        raise ValueError(
            f'voters="node" needs equally many workers on each node, and {workers} workers are no multiple '
            f'of workers_per_node={per_node}: start as many on each, or use voters="worker"'
        )
    if per_node > _MOST:
        raise ValueError(f'voters="node" takes up to {_MOST} workers on a node, got {per_node}')
    if per_node == 1:
        return None
    parent = dist.group.WORLD if group is None else group
    assert parent is not None
    everyone = dist.get_process_group_ranks(parent)
    index, place = divmod(rank, per_node)
    of_nodes = [everyone[first : first + per_node] for first in range(0, workers, per_node)]
    of_places = [everyone[place::per_node] for place in range(per_node)]
    inside, between = group_of_its_own(group, of_nodes), group_of_its_own(group, of_places)
    count = workers // per_node
    return Nodes(parent, inside, between, per_node, place, count, index, of_places[place])


def check_sizes(sizes: Sequence[int]) -> int:
    """What all ranks were told alike of the workers on a node; 0 for nothing.

    Raises:
        ValueError: some were told something else.

    Example:
        >>> check_sizes([2, 2, 2, 2])
        2
    """
    for rank, size in enumerate(sizes):
        if size != sizes[0]:
            raise ValueError(
                f'voters="node" needs equally many workers on each node, and workers_per_node (or else '
                f"LOCAL_WORLD_SIZE, 0 for none) is {sizes[0]} on rank 0, and {size} on rank {rank}: start as "
                'many on each, pass the same number on all ranks, or use voters="worker"'
            )
    return sizes[0]


def workers_of_each(hosts: Sequence[str]) -> int:
    """How many workers each host has, given the host of each rank.

    Raises:
        ValueError: not equally many, or ranks of a host that do not follow each other.

    Example:
        >>> workers_of_each(["a", "a", "b", "b"])
        2
    """
    runs = [(host, len(list(ranks))) for host, ranks in groupby(hosts)]
    names = [host for host, _ in runs]
    for host in names:
        if names.count(host) > 1:
            ranks = ", ".join(str(rank) for rank, name in enumerate(hosts) if name == host)
            raise ValueError(
                f'voters="node" needs nodes whose ranks follow each other, and host {host!r} has ranks '
                f"{ranks}: number the ranks host by host, as torchrun and Lightning do, or use "
                'voters="worker"'
            )
    if len({size for _, size in runs}) > 1:
        counts = ", ".join(f"{host!r} has {size}" for host, size in runs)
        raise ValueError(
            f'voters="node" needs equally many workers on each node, and {counts}: start as many on each, '
            'pass workers_per_node, or use voters="worker"'
        )
    return runs[0][1]


def check_voters(voters: str, workers_per_node: int | None) -> None:
    """Raise where a vote's arguments do not fit each other.

    Raises:
        ValueError, TypeError: see :class:`~lightning_signvr.voting.MajorityVote`.
    """
    check_optional_count("workers_per_node", workers_per_node, "to find out")
    if workers_per_node is None:
        return
    if voters != "node":
        raise ValueError(
            f'workers_per_node={workers_per_node} has no effect with voters="worker": leave it out, or pass '
            'voters="node"'
        )


def _told(workers: int) -> int | None:
    """What torchrun says of all ranks of the job; None where these are not all, or it says nothing."""
    said = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(said) if said.isdigit() and workers == dist.get_world_size() else None


def _ask(
    size: int,
    host: str,
    workers: int,
    device: torch.device,
    group: dist.ProcessGroup | None,
    traffic: Traffic,
) -> tuple[list[int], list[str]]:
    """What each rank was told of its node, and the name of its host."""
    name = host.encode()[:_NAME].ljust(_NAME, b"\0")
    mine: Tensor = torch.tensor([*size.to_bytes(8, "little"), *name], dtype=torch.uint8, device=device)
    everyones = mine.new_empty(workers, mine.numel())
    traffic.all_gather(everyones, mine, group).wait()
    rows = [bytes(row) for row in everyones.tolist()]
    sizes = [int.from_bytes(row[:8], "little") for row in rows]
    return sizes, [row[8:].rstrip(b"\0").decode(errors="replace") for row in rows]
