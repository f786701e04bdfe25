"""Majority vote of signs among the workers of a process group."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_signvr.signs import check_signable
from lightning_signvr.signs.recipes import tensor_of
from lightning_signvr.voting.ballot_box import BallotBox
from lightning_signvr.voting.decisions import ByMajority, Decision
from lightning_signvr.voting.exchange import Outcome, Terms
from lightning_signvr.voting.group import world
from lightning_signvr.voting.layout import Layout, common_device
from lightning_signvr.voting.nodes import VOTERS, Voters, check_voters
from lightning_signvr.voting.nonfinite import (
    NONFINITE_RULES,
    MaybeDirection,
    Nonfinite,
    NonfiniteRanks,
    NotFinite,
)
from lightning_signvr.voting.open_vote import OpenVote
from lightning_signvr.voting.result import VotedSigns
from lightning_signvr.voting.rules import (
    TIE_RULES,
    ZERO_RULES,
    TieRule,
    ZeroRule,
    check_optional_count,
    check_rule,
    check_seed,
)
from lightning_signvr.voting.topology import TOPOLOGIES, Topology
from lightning_signvr.voting.traffic import Traffic

_CONSEQUENCES: dict[Nonfinite, str] = {
    "abstain": "it does not vote on those tensors",
    "skip": "all workers leave out the step",
    "raise": "all workers stop",
}


class MajorityVote:
    """Majority vote with one bit per parameter in each direction.

    Signum/signSGD with majority vote (Bernstein et al., ICLR 2019, arXiv 1810.05291, algorithm 1):
    each worker sends the sign of its direction, each receives the sign of the sum. There is no
    parameter server: every rank counts the votes of the shard that it owns, so that each sends and
    receives ``2 (n - 1) / n`` bits per parameter, plus a header of some bytes per tensor. A single
    worker's vote is its own sign, and nothing is sent.

    The result is the same to the last bit on all ranks, and depends on the directions, ``seed`` and
    the step alone.

    Args:
        process_group: the ranks that vote; None for all (or for a lone worker where
            ``torch.distributed`` is not initialised).
        ties: what an equal number of votes for + and - decides: ``"random"`` (a fair coin), ``"zero"``
            (nothing moves) or ``"positive"``.
        zeros: what a worker does where its direction is 0 or NaN: ``"abstain"``, ``"random"`` (a coin
            of its own) or ``"positive"``. See :mod:`lightning_signvr.voting.rules` for their costs.
        seed: of all coins, 0 to 2**64 - 1; the same on all ranks.
        topology: how bits travel: ``"two_phase"`` (each rank counts the votes of the shard that it owns),
            ``"one_phase"`` (everyone sends all votes to everyone: ``n - 1`` bits per parameter, and half the
            waiting) or ``"auto"``: one phase for two workers, whom it costs no more; for others two, unless
            there are few parameters (less than half a million) and one phase is faster by the latency and
            the bandwidth measured before the first vote. The outcome is the same.
        bucket_parameters: how many parameters' bits travel at once, while the next ones are packed and the
            last ones are applied; None for a good number (2 million or more, at most 64 buckets). The outcome
            is the same.
        voters: ``"worker"``, or ``"node"``: the workers of a node are one voter, which votes with the signs
            of the mean of their directions. See :mod:`lightning_signvr.voting.hierarchy`.
        workers_per_node: with ``voters="node"``; None for what torchrun says, or else for what the names of
            the hosts tell. The ranks of a node must follow each other.
        nonfinite: what happens where a worker's gradient has NaN or inf, in a step of an optimizer.
            ``"abstain"``: the worker does not vote on that tensor and keeps its estimate of it as it was; the
            others go on. ``"skip"``: all workers leave out the step. ``"raise"``: all raise an error. The
            last two cost a round trip in every step, for asking, and exclude ``overlap``.
        nonfinite_limit: steps in a row after which a worker without finite gradients is an error on all
            workers; None for no limit.
        verify: whether a CRC-32 of whatever is sent travels beside it. What was damaged on the way is then an
            error that names the sender. It costs a second, small collective for each one, and time.

    Attributes:
        exchange_group: the process group that carries the votes: ``process_group``, or one of the same ranks
            whose collectives no other code uses, where votes begin during backward.
        step: number of the next vote; it keys the coins, and all ranks must agree on it.
        traffic: bytes and seconds so far.
        last: what the last vote decided (overwritten in place by the next one), or None.
        detailed: whether votes are looked at closely, for :attr:`VotedSigns.details`; a step that does
            so must do it on all ranks. It costs time, and some bytes per tensor and worker.
        nonfinite_ranks: who has had no finite gradients lately, and for how long.

    Raises:
        ValueError: an unknown rule or topology, a number out of range, a group that this rank is not in,
            ``voters="node"`` for a vote that is not a majority.
        TypeError: a seed or a number of parameters or workers that is not an int.

    Example:
        >>> vote = MajorityVote()
        >>> vote([torch.tensor([-0.3, 2.0, 0.0])]).signs(0)  # a lone worker
        tensor([-1.,  1.,  0.])
    """

    nodes_can_vote = True

    def __init__(
        self,
        process_group: dist.ProcessGroup | None = None,
        ties: TieRule = "random",
        zeros: ZeroRule = "abstain",
        seed: int = 0,
        topology: Topology = "auto",
        bucket_parameters: int | None = None,
        voters: Voters = "worker",
        workers_per_node: int | None = None,
        nonfinite: Nonfinite = "abstain",
        nonfinite_limit: int | None = 50,
        verify: bool = False,
    ) -> None:
        check_rule("ties", ties, TIE_RULES)
        check_rule("zeros", zeros, ZERO_RULES)
        check_rule("topology", topology, TOPOLOGIES)
        check_seed(seed)
        check_optional_count("bucket_parameters", bucket_parameters, "for a good number")
        check_rule("voters", voters, VOTERS)
        check_voters(voters, workers_per_node)
        check_rule("nonfinite", nonfinite, NONFINITE_RULES)
        check_optional_count("nonfinite_limit", nonfinite_limit, "for no limit")
        if voters == "node" and not self.nodes_can_vote:
            raise ValueError(
                f'voters="node" needs a majority, and {type(self).__name__} makes something else of the '
                'votes: use voters="worker", or a method that takes a MajorityVote'
            )
        world(process_group)  # raises where this rank is not in it
        self.process_group = process_group
        self.ties: TieRule = ties
        self.zeros: ZeroRule = zeros
        self.seed = seed
        self.topology: Topology = topology
        self.bucket_parameters = bucket_parameters
        self.voters: Voters = voters
        self.workers_per_node = workers_per_node
        self.nonfinite: Nonfinite = nonfinite
        self.nonfinite_ranks = NonfiniteRanks(nonfinite_limit, _CONSEQUENCES[nonfinite])
        self.exchange_group = process_group
        self.step = 0
        self.traffic = Traffic(verify=verify)
        self.last: VotedSigns | None = None
        self.detailed = False
        self._details_requested = False
        self._is_open = False
        self._box = BallotBox(self)

    def __repr__(self) -> str:
        nodes = ", voters='node'" if self.voters == "node" else ""
        return f"{type(self).__name__}(ties={self.ties!r}, zeros={self.zeros!r}, seed={self.seed}{nodes})"

    def __getstate__(self) -> dict[str, object]:
        state = {**self.__dict__, "last": None, "exchange_group": self.process_group, "_is_open": False}
        del state["_box"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._box = BallotBox(self)

    @property
    def rank(self) -> int:
        """This worker's number among those that vote."""
        return self._world()[0]

    @property
    def workers(self) -> int:
        """Number of workers that vote, each or as nodes."""
        return self._world()[1]

    @property
    def workers_per_voter(self) -> int:
        """Workers of a node, where nodes vote and have voted; 1 elsewhere."""
        return 1 if self._box.nodes is None else self._box.nodes.workers

    def _world(self) -> tuple[int, int]:
        """This worker's rank among those that vote, and their number."""
        return world(self.process_group)

    def __call__(
        self,
        directions: Iterable[MaybeDirection],
        like: Sequence[Tensor] | None = None,
        scales: Sequence[float] | None = None,
    ) -> VotedSigns:
        """Vote on the signs of ``directions``; a collective: every rank must call it equally often.

        Args:
            directions: floating-point tensors, the same shapes in the same order on all ranks. None
                where this worker has nothing to say; other workers may still vote on that tensor. With
                ``like`` it may be a generator: each direction is packed before the next one is asked for.
            like: tensors of the same shapes (the parameters); needed where a direction is None.
            scales: a number per tensor that all ranks are to know, at least 0; rounded to float32. Read
                after the directions. All ranks send some, or none does.

        Returns:
            The votes; their planes are overwritten by the next call.

        Raises:
            TypeError: integer, complex or sparse directions.
            ValueError: ``like`` is missing or does not fit; several devices; a device that the
                process group cannot exchange.
            RuntimeError: another rank votes on something else.
        """
        return self._vote(directions, like, scales, self._decision)

    def stream(self, directions: Iterable[MaybeDirection], like: Sequence[Tensor]) -> VotedSigns:
        """:meth:`__call__` that returns when all directions are packed, with the outcome still to come.

        Follow :meth:`VotedSigns.arrivals` to its end before anything else is asked of the votes.
        """
        return self._open(like, None, self._decision).collect(directions)

    def open(self, like: Sequence[Tensor], backwards: bool = False) -> OpenVote:
        """Begin a vote whose directions come one by one, in any order.

        Args:
            like: tensors of the directions' shapes (the parameters).
            backwards: whether the last directions are likely to come first; the same on all ranks.

        Raises:
            TypeError, ValueError, RuntimeError: as for :meth:`__call__`.
        """
        return self._open(like, None, self._decision, backwards)

    def may_step(self, finite: bool, device: torch.device) -> bool:
        """Ask all workers whether their gradients are finite, before a step; a collective.

        Only with ``nonfinite="skip"`` and ``"raise"``: abstentions are told in the vote itself.

        Args:
            finite: whether this worker's are.
            device: of tensors that the process group can exchange.

        Returns:
            Whether all are. If not, leave out the step.

        Raises:
            RuntimeError: some are not, with ``"raise"``; or for too many steps in a row.
        """
        flags = torch.tensor([not finite], dtype=torch.uint8, device=device)
        if self.workers > 1:
            self._box.agree(device)
            self.traffic.purpose = f"asking for gradients that are not finite before step {self.step}"
            everyones = flags.new_empty(self.workers, 1)
            self.traffic.all_gather(everyones, flags, self.process_group).wait()
            flags = everyones
        ranks = flags.view(-1).nonzero().view(-1).tolist()
        self.nonfinite_ranks.note(self.step, ranks, speaks=self.rank == 0)
        if ranks and self.nonfinite == "raise":
            names = ", ".join(f"rank {rank}" for rank in ranks)
            raise RuntimeError(
                f"{names}: NaN or inf in the gradients of step {self.step}; nothing was changed by it. Look "
                'at the data, lower the learning rate or clip gradients, or train with nonfinite="abstain"'
            )
        self.nonfinite_ranks.check()
        return not ranks

    def request_details(self) -> None:
        """Look closely at the next vote that begins; all ranks must ask for it."""
        self._details_requested = True

    @property
    def _decision(self) -> Decision:
        """What becomes of the votes on a shard."""
        return ByMajority(self.ties, self.seed)

    def _vote(
        self,
        directions: Iterable[MaybeDirection],
        like: Sequence[Tensor] | None,
        scales: Sequence[float] | None,
        decision: Decision,
    ) -> VotedSigns:
        if like is None:
            directions = list(directions)
            like = [
                tensor_of(each) for each in directions if not (each is None or isinstance(each, NotFinite))
            ]
            if len(like) < len(directions):
                raise ValueError(
                    "directions holds None, so its shape is unknown: pass the parameters as `like`"
                )
            for index, direction in enumerate(like):
                check_signable(direction, f"directions[{index}]")
        votes = self._open(like, scales, decision).collect(directions)
        for _ in votes.arrivals():
            pass
        return votes

    def _open(
        self,
        like: Sequence[Tensor],
        scales: Sequence[float] | None,
        decision: Decision,
        backwards: bool = False,
    ) -> OpenVote:
        if scales is not None and self.voters == "node":
            raise ValueError(
                'scales are numbers of workers, and with voters="node" nodes vote: use voters="worker", or a '
                "method that sends none (with stochastic signs shared_radius=False)"
            )
        layout, shapes, device = Layout.of(like), [tensor.shape for tensor in like], common_device(like)
        extras = (scales is not None, decision.scaled_answer)
        if self._is_open:
            raise RuntimeError(
                "the last vote has begun and was not ended (an error between backward and the end of a "
                "step?): the workers may have parted. Resume from the last checkpoint"
            )
        self.nonfinite_ranks.check()
        self.traffic.purpose = f"the vote of step {self.step} on {len(shapes)} tensors"
        ballot = self._box.get(layout, shapes, extras, device, decision.splits and not any(extras), backwards)
        detailed, self._details_requested = self.detailed or self._details_requested, False
        terms = Terms(self.step, decision, detailed, self.exchange_group, self.traffic)
        self._is_open = self.workers > 1
        return OpenVote(self, ballot, terms, layout, shapes, scales)

    def _end(self, votes: VotedSigns) -> None:
        """An open vote has come to its end."""
        self._is_open = False
        self.nonfinite_ranks.note(self.step, votes.nonfinite, speaks=self.rank == 0)
        self.last = votes
        self.step += 1
        self.traffic.votes += 1

    def _result(self, outcome: Outcome, fields: dict[str, Any]) -> VotedSigns:
        """What this kind of vote returns, given the fields that all kinds have."""
        return VotedSigns(**fields)

    @property
    def rules(self) -> tuple[object, ...]:
        """All that the ranks must agree on, but for what they vote on."""
        return (
            type(self).__name__,
            self.ties,
            self.zeros,
            self.seed,
            self.topology,
            self.bucket_parameters,
            self.voters,
            self.workers_per_node,
            self.nonfinite,
            self.nonfinite_ranks.limit,
            self.traffic.verify,
        )
