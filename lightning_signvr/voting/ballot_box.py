"""The ballots of a vote: one for each list of tensors that it is held on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from lightning_signvr.voting.agreement import check_agreement
from lightning_signvr.voting.ballot import Ballot
from lightning_signvr.voting.buckets import cut
from lightning_signvr.voting.group import check_backend
from lightning_signvr.voting.hierarchy import NodeBallot
from lightning_signvr.voting.layout import Layout
from lightning_signvr.voting.nodes import Nodes, find_nodes
from lightning_signvr.voting.topology import Route, choose_route

if TYPE_CHECKING:
    from lightning_signvr.voting.majority import MajorityVote

log = logging.getLogger(__name__)

_KEPT = 4  # layouts whose buffers are kept


class BallotBox:
    """Makes ballots, once the ranks have agreed on what they vote on.

    Args:
        vote: whose rules hold.

    Attributes:
        nodes: of the workers, where nodes vote and have several, once that is known.
    """

    def __init__(self, vote: MajorityVote) -> None:
        self._vote = vote
        self._ballots: dict[tuple[object, ...], Ballot] = {}
        self.nodes: Nodes | None = None
        self._has_agreed = False

    def agree(self, device: torch.device) -> None:
        """Compare the rules before anything else is exchanged; a collective where nothing was yet.

        Raises:
            ValueError: a device that the process group cannot exchange.
            RuntimeError: another rank votes by other rules, or at another step.
        """
        if not self._has_agreed:
            self._agree(Layout.of([]), (False, False), device)
            self._has_agreed = True

    def _agree(self, layout: Layout, extras: tuple[bool, bool], device: torch.device) -> None:
        vote = self._vote
        check_backend(vote.process_group, device)
        rules = (vote.rules, extras)
        check_agreement(layout, rules, vote.step, device, vote.workers, vote.process_group, vote.traffic)

    def forget(self) -> None:
        """Let go of all buffers, and of what other ranks are thought to remember."""
        self._ballots.clear()
        self._has_agreed = False

    def get(
        self,
        layout: Layout,
        shapes: Sequence[torch.Size],
        extras: tuple[bool, bool],
        device: torch.device,
        splits: bool,
        backwards: bool,
    ) -> Ballot:
        """The ballot for such tensors; a collective where there is none yet.

        Args:
            layout, shapes, device: of the tensors.
            extras: whether scales travel with the votes, and with the outcome.
            splits: whether the votes may travel in several buckets, and in one phase.
            backwards: whether the last bucket goes first.

        Raises:
            ValueError: a device that the process group cannot exchange.
            RuntimeError: another rank votes on something else.
        """
        vote = self._vote
        rank, workers = vote.rank, vote.workers
        if self.nodes is not None and self.nodes.parent is not (vote.process_group or dist.group.WORLD):
            self.nodes = None  # the process group is another one by now
            self.forget()
        key = (tuple(shapes), extras, device, rank, workers, splits, backwards)
        if key in self._ballots:
            return self._ballots[key]
        route: Route = "two_phase"
        nodes: Nodes | None = None
        if workers > 1:
            self._agree(layout, extras, device)
            nodes = self._find_nodes(device)
            if splits:
                route = self._route(layout, device, workers, nodes)
        while len(self._ballots) >= _KEPT:
            del self._ballots[next(iter(self._ballots))]
        parameters = vote.bucket_parameters if splits and workers > 1 else 8 * layout.num_bytes or 1
        make: Callable[..., Ballot] = Ballot if nodes is None else partial(NodeBallot, nodes)
        self._ballots[key] = ballot = make(
            layout=layout,
            shapes=shapes,
            device=device,
            rank=rank if nodes is None else nodes.index,
            workers=workers if nodes is None else nodes.count,
            rules=(vote.rules, *extras),
            scaled=extras[0],
            zeros=vote.zeros,
            seed=vote.seed,
            route=route,
            bucket_parameters=parameters,
            backwards=backwards,
        )
        log.info(
            "sign vote of %d %s(s) on %d parameters in %d tensors, %d bucket(s), %s: %r",
            ballot.voters, "worker" if nodes is None else "node", layout.num_parameters,
            len(layout.numels), ballot.buckets, route, vote,
        )  # fmt: skip
        return ballot

    def _find_nodes(self, device: torch.device) -> Nodes | None:
        """Of the workers, where nodes vote and have several; a collective where they were not known."""
        vote = self._vote
        if vote.voters == "worker":
            return None
        if self.nodes is None:
            self.nodes = find_nodes(vote.process_group, vote.workers_per_node, device, vote.traffic)
        return self.nodes

    def _route(self, layout: Layout, device: torch.device, workers: int, nodes: Nodes | None) -> Route:
        """How a bucket travels, the same on all ranks that it travels between."""
        vote = self._vote
        if nodes is not None and nodes.count == 1:
            return "two_phase"  # in which a lone voter sends nothing
        if vote.topology != "auto":
            return vote.topology
        size, group = cut(layout, workers, vote.bucket_parameters)[0].size, vote.exchange_group
        if nodes is not None:
            size, group = size // nodes.workers, nodes.between
        return choose_route(size, group, device, vote.traffic)
