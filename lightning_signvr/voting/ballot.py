"""One worker's votes on a fixed list of tensors: packed one by one, sent bucket by bucket."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_signvr.signs import Counts, Direction, check_signable, count_ones
from lightning_signvr.signs.dispatch import triton_kernels
from lightning_signvr.signs.recipes import tensor_of
from lightning_signvr.voting.buckets import Bucket, cut
from lightning_signvr.voting.buffers import Buffers
from lightning_signvr.voting.details import VoteDetails
from lightning_signvr.voting.exchange import Ballots, Exchange, Outcome, Terms
from lightning_signvr.voting.layout import Layout
from lightning_signvr.voting.nonfinite import MaybeDirection, NotFinite
from lightning_signvr.voting.one_phase import OnePhase
from lightning_signvr.voting.packing import Packer
from lightning_signvr.voting.pipeline import LANES, Pipeline
from lightning_signvr.voting.rules import ZeroRule
from lightning_signvr.voting.topology import Route
from lightning_signvr.voting.two_phase import TwoPhase, sum_of_counts

_WAYS: dict[Route, type[OnePhase] | type[TwoPhase]] = {"one_phase": OnePhase, "two_phase": TwoPhase}


class Ballot:
    """Open it, put a direction in for each tensor, and close it.

    Args:
        layout, shapes, device: of the tensors.
        rank, workers: among those that vote.
        rules: what else all ranks must agree on.
        scaled: whether scales travel with the votes.
        zeros, seed: see :class:`MajorityVote`.
        route: how the buckets travel.
        bucket_parameters: see :func:`~lightning_signvr.voting.buckets.cut`.
        backwards: whether the last bucket goes first, as gradients come.

    Attributes:
        packs_together: whether a kernel may pack many directions at once, where there is one.
    """

    packs_together: ClassVar[bool] = True

    def __init__(
        self,
        layout: Layout,
        shapes: Sequence[torch.Size],
        device: torch.device,
        rank: int,
        workers: int,
        rules: Hashable,
        scaled: bool,
        zeros: ZeroRule,
        seed: int,
        route: Route,
        bucket_parameters: int | None,
        backwards: bool,
    ) -> None:
        self._layout, self._shapes, self._device = layout, shapes, device
        self._rank, self._workers = rank, workers
        buckets = cut(layout, workers * self._slices, bucket_parameters)
        self._size = buckets[-1].stop
        self._buckets = buckets[::-1] if backwards else buckets
        self._own_buckets = [self._own(bucket) for bucket in self._buckets]
        self._undecided: Tensor | None = None  # made when a coordinate is undecided for the first time
        together = self.packs_together and triton_kernels(device) is not None
        self._packer = Packer(layout, self._size, device, rank, zeros, seed, together)
        self._negative = self._packer.negative  # and later the outcome
        self._planes = Buffers(device)
        self._missing = [False] * len(shapes)
        self._nonfinite = [False] * len(shapes)
        lanes = [Buffers(device) for _ in range(LANES)]
        digest = (rules, scaled, workers, route, backwards)
        self._exchanges: list[Exchange] = [
            _WAYS[route](
                layout=layout,
                bucket=bucket,
                digest=layout.digest(*digest, bucket.start, bucket.size),
                scaled=scaled,
                rank=rank,
                workers=workers,
                buffers=lanes[number % LANES],
                device=device,
                undecided=partial(self._undecided_part, bucket),
                workers_per_voter=self.workers_per_voter,
            )
            for number, bucket in enumerate(self._own_buckets)
        ]
        self._where: list[list[int]] = [[] for _ in shapes]  # the buckets of each tensor
        for number, bucket in enumerate(self._buckets):
            for index in range(bucket.first, bucket.last):
                self._where[index].append(number)

    # -- one vote ---------------------------------------------------------------------------------

    def open(self, terms: Terms) -> None:
        """Begin a vote."""
        self._terms = terms
        self._scales: Sequence[float] | None = None
        self._put = [False] * len(self._shapes)
        self._to_come = [bucket.last - bucket.first for bucket in self._buckets]
        self._present = [False] * len(self._shapes)
        self._packer.open(terms.step)
        self._outcomes: list[Outcome] = []
        self._pipeline = Pipeline(self._exchanges, self._is_packed, self._send, self._decide, self._receive)

    def put(self, index: int, direction: MaybeDirection) -> None:
        """Pack the signs of a tensor's direction, at the latest when all of its bucket are there.

        The zero rule says what stands for no sign.

        Raises:
            ValueError: it is not the tensor's direction, or there was one.
        """
        started = time.perf_counter()
        if index >= len(self._shapes):
            raise ValueError(f"directions has more tensors than like, which has {len(self._shapes)}")
        self._nonfinite[index] = isinstance(direction, NotFinite)
        if isinstance(direction, NotFinite):
            direction = None
        if direction is not None:
            self._check(index, tensor_of(direction))
        self._missing[index] = direction is None
        self._take(index, direction)
        self._put[index] = True
        for number in self._where[index]:
            self._to_come[number] -= 1
        if self._packer.must_pack or any(map(self._is_packed, self._where[index])):
            self._packer.pack_waiting()
        self._terms.traffic.add_seconds("pack", time.perf_counter() - started)

    def advance(self) -> None:
        """Start what can be started without waiting."""
        if not self.alone:
            while self._pipeline.advance(wait=False):
                pass

    def complete(self) -> None:
        """Check that all directions were put.

        Raises:
            ValueError: there are fewer than tensors.
        """
        if not all(self._put):
            raise ValueError(f"directions has {sum(self._put)} tensors, like has {len(self._shapes)}")

    def arrivals(self, scales: Sequence[float] | None) -> Iterator[Sequence[int]]:
        """Wait for the outcome of bucket after bucket, the tensors that each completes; a collective.

        Raises:
            RuntimeError: another rank votes on something else, or sent something damaged.
        """
        self._scales = scales
        to_come = [len(numbers) for numbers in self._where]
        done = 0
        while done < len(self._buckets):
            self._pipeline.advance(wait=True)
            while done < self._pipeline.received:
                bucket = self._buckets[done]
                done += 1
                for index in range(bucket.first, bucket.last):
                    to_come[index] -= 1
                yield [index for index in range(bucket.first, bucket.last) if to_come[index] == 0]

    # -- what comes out ---------------------------------------------------------------------------

    @property
    def voters(self) -> int:
        """How many there are."""
        return self._workers

    @property
    def workers_per_voter(self) -> int:
        """Workers of a node, where nodes vote."""
        return 1

    @property
    def alone(self) -> bool:
        """Whether the outcome is the own sign."""
        return self._workers == 1

    @property
    def buckets(self) -> int:
        """How many there are."""
        return len(self._buckets)

    @property
    def present(self) -> Sequence[bool]:
        """Per tensor, whether any worker voted on it, as far as the outcome is there."""
        return self._present

    @property
    def planes(self) -> Tensor:
        """uint8, ``[k, bytes]``: the outcome, as far as it is there."""
        bits = self._exchanges[0].bits
        return self._negative.view(1, -1) if bits == 1 else self._planes.get("planes", bits, self._size)

    @property
    def undecided(self) -> Tensor | None:
        """uint8 plane, 1 where nothing moves; None for nowhere."""
        return self._undecided

    def outcome(self) -> Outcome:
        """Of all buckets together."""
        first = self._outcomes[0]
        total = replace(
            first,
            present=self._present,
            counts=sum_of_counts(outcome.counts for outcome in self._outcomes),
            abstentions=any(outcome.abstentions for outcome in self._outcomes),
        )
        looks = [outcome.details.to_numbers() for outcome in self._outcomes if outcome.details is not None]
        if looks:
            total.details = VoteDetails.sum_of(looks, len(self._shapes), self._workers)
        return total

    @property
    def nonfinite(self) -> Sequence[int]:
        """The ranks that had no direction for some tensor, as their gradients are not finite."""
        if self.alone:
            return [self._rank] if any(self._nonfinite) else []
        ranks = set()
        for outcome in self._outcomes:
            for voter, workers in enumerate(outcome.nonfinite):
                for place in range(self.workers_per_voter):
                    if workers >> place & 1:
                        ranks.add(voter * self.workers_per_voter + place)
        return sorted(ranks)

    def own_outcome(self) -> dict[str, Any]:
        """A lone worker's vote is its own sign, nothing to count: fields of :class:`VotedSigns`."""
        self.complete()
        abstaining = self._packer.abstaining(range(len(self._shapes)), slice(None))
        silent = 0 if abstaining is None else count_ones(abstaining)
        votes = self._layout.num_parameters - silent
        return {
            "planes": self._negative.view(1, -1),
            "undecided": abstaining,
            "present": [not missing for missing in self._missing],
            "counts": Counts(votes=votes, margin=votes, silent=silent),
            "nonfinite": self.nonfinite,
        }

    # -- packing ----------------------------------------------------------------------------------

    def _check(self, index: int, direction: Tensor) -> None:
        check_signable(direction, f"directions[{index}]")
        if direction.shape != self._shapes[index]:
            raise ValueError(
                f"directions[{index}] has shape {tuple(direction.shape)}, like[{index}] has "
                f"{tuple(self._shapes[index])}"
            )
        if direction.device != self._device:
            raise ValueError(
                f"directions[{index}] is on {direction.device}, the vote is on {self._device}: the tensors "
                "of one vote must be on one device"
            )

    def _take(self, index: int, direction: Direction | None) -> None:
        self._packer.put(index, direction)

    # -- the way of a bucket ----------------------------------------------------------------------

    @property
    def _slices(self) -> int:
        """Into how many equal parts a bucket can be cut, of which :meth:`_own` is one."""
        return 1

    def _own(self, bucket: Bucket) -> Bucket:
        """The part of a bucket that this rank votes on."""
        return bucket

    def _is_packed(self, number: int) -> bool:
        return self._to_come[number] == 0

    def _send(self, number: int) -> None:
        bucket = self._buckets[number]
        tensors = slice(bucket.first, bucket.last)
        ballots = Ballots(
            self._negative[bucket.part],
            self._packer.abstaining(range(bucket.first, bucket.last), bucket.part),
            self._missing[tensors],
            self._scales,
            nonfinite=int(any(self._nonfinite[tensors])),
        )
        self._exchanges[number].send(ballots, self._terms)

    def _decide(self, number: int) -> None:
        self._exchanges[number].decide(self._terms)

    def _receive(self, number: int) -> None:
        bucket = self._buckets[number]
        outcome = self._exchanges[number].receive(self.planes[:, bucket.part], self._terms)
        for index, present in zip(range(bucket.first, bucket.last), outcome.present, strict=True):
            self._present[index] |= present
        self._outcomes.append(outcome)

    def _undecided_part(self, bucket: Bucket) -> Tensor:
        if self._undecided is None:
            self._undecided = torch.zeros_like(self._negative)
        return self._undecided[bucket.part]
