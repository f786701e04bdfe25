"""The vote of nodes: numbers inside a node, signs between nodes, bits inside again.

Bucket by bucket, with k workers on each of m nodes:

1. Every worker sends slice r of its directions, in float32, to worker r of its node (``all_to_all``), which
   adds them in the order of the workers: the node's direction on that slice.
2. It votes with the signs of that, among the workers of place r on all nodes, as one voter per node; see
   :mod:`lightning_signvr.voting.exchange`.
3. The workers of a node give each other the outcome on their slices (``all_gather``).

Between nodes each worker sends ``2 (m - 1) / m / k`` bits per parameter, a node together ``2 (m - 1) / m``.
The sum has the sign of the mean, whatever the number of workers that it is a sum of.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from lightning_signvr.signs import Counts, Direction
from lightning_signvr.signs.recipes import computed
from lightning_signvr.voting.ballot import Ballot
from lightning_signvr.voting.buckets import Bucket, slice_of
from lightning_signvr.voting.buffers import Buffers
from lightning_signvr.voting.details import VoteDetails
from lightning_signvr.voting.exchange import Ballots, Outcome, Terms
from lightning_signvr.voting.nodes import Nodes

# int32 behind the numbers: the step, whether details are asked for, and whether a gradient is not finite
_WORDS = 3
_OTHER_STEP = 1 << 31  # makes a step that no rank is at
_COUNTS = 5  # int64 in front of a slice's outcome: whether it has undecided coordinates, and the counts


class NodeBallot(Ballot):
    """See the module.

    Args:
        nodes: of the workers that vote; ``rank`` and ``workers`` of the ballot are the node's and the nodes.
    """

    packs_together: ClassVar[bool] = False  # it packs the sums

    def __init__(self, nodes: Nodes, **common: Any) -> None:
        self._nodes = nodes
        self._scratch = Buffers(common["device"])
        self._stages: dict[int, Tensor] = {}  # directions of buckets that were not sent yet
        self._free: list[Tensor] = []
        super().__init__(**common)
        self._largest = max(self._row(bucket) for bucket in self._buckets) * nodes.workers
        self._received = torch.empty(self._largest, device=self._device)
        self._parted: dict[int, str] = {}

    @property
    @override
    def workers_per_voter(self) -> int:
        return self._nodes.workers

    @property
    @override
    def alone(self) -> bool:
        return False

    @property
    @override
    def _slices(self) -> int:
        return self._nodes.workers

    @override
    def _own(self, bucket: Bucket) -> Bucket:
        return slice_of(bucket, self._layout, self._nodes.place, self._nodes.workers)

    def _slice(self, bucket: Bucket) -> int:
        """Bytes of a bucket that one worker of the node votes on."""
        return bucket.size // self._nodes.workers

    def _row(self, bucket: Bucket) -> int:
        """Float32 that one worker of the node sends to another."""
        return 8 * self._slice(bucket) + bucket.last - bucket.first + _WORDS

    @override
    def open(self, terms: Terms) -> None:
        self._parted.clear()
        super().open(replace(terms, group=self._nodes.between))

    # -- what the worker puts in ------------------------------------------------------------------

    @override
    def _take(self, index: int, direction: Direction | None) -> None:
        whole, numel = self._layout.part(index), self._layout.numels[index]
        flat = None if direction is None else computed(direction).detach().reshape(-1)
        for number in self._where[index]:
            bucket, stage = self._buckets[number], self._stage(number)
            size = self._slice(bucket)
            stage[:, 8 * size + index - bucket.first] = flat is not None
            for place, row in enumerate(stage):
                start = bucket.start + place * size
                begin, end = max(whole.start, start), min(whole.stop, start + size)
                if begin >= end:
                    continue
                first = 8 * (begin - whole.start)
                row = row[8 * (begin - start) : 8 * (end - start)]
                used = row[: numel - first]
                if flat is None:
                    used.zero_()
                else:
                    used.copy_(flat[first : first + used.numel()])
                row[numel - first :] = 1.0  # padding votes +

    def _stage(self, number: int) -> Tensor:
        """Float32, ``[workers, row]``: a bucket's numbers, slice by slice, and what goes with them."""
        bucket, workers, is_new = self._buckets[number], self._nodes.workers, number not in self._stages
        if is_new:
            room = self._free.pop() if self._free else torch.zeros(self._largest, device=self._device)
            self._stages[number] = room
        stage = self._stages[number][: workers * self._row(bucket)].view(workers, -1)
        if is_new:
            size = self._slice(bucket)
            for place, row in enumerate(stage):
                used = max(0, self._layout.num_bytes - bucket.start - place * size)
                row[8 * min(used, size) : 8 * size] = 1.0  # as padding of the last tensor
        return stage

    # -- the way of a bucket ----------------------------------------------------------------------

    @override
    def _send(self, number: int) -> None:
        terms, own = self._terms, self._own_buckets[number]
        total, nonfinite = self._add_up(number)
        numbers = 8 * own.size
        with terms.traffic.timed("pack"):
            bucket = self._buckets[number]
            given = (total[numbers : numbers + bucket.last - bucket.first] > 0).tolist()
            missing = [not given[index - bucket.first] for index in range(own.first, own.last)]
            negative = self._negative[own.part]
            abstaining = self._pack_slice(total[:numbers], negative, own, missing)
        if number in self._parted:  # so that the other nodes are told too
            terms = replace(terms, step=terms.step ^ _OTHER_STEP)
        self._exchanges[number].send(Ballots(negative, abstaining, missing, None, nonfinite), terms)

    def _add_up(self, number: int) -> tuple[Tensor, int]:
        """The node's directions on the own slice, and how many workers have one of each tensor.

        And a bit for each worker whose gradients of the bucket are not finite.
        """
        nodes, terms, stage, bucket = self._nodes, self._terms, self._stage(number), self._buckets[number]
        words = stage[:, -_WORDS:].view(torch.int32)
        words[:, 0], words[:, 1] = terms.step & 0x7FFFFFFF, terms.detailed
        words[:, 2] = any(self._nonfinite[bucket.first : bucket.last])
        received = self._received[: stage.numel()].view(stage.shape)
        with terms.traffic.timed("node_all_to_all"), terms.traffic.inside_node():
            terms.traffic.all_to_all(received, stage, nodes.inside).wait()
            self._free.append(self._stages.pop(number))
            theirs = received[:, -_WORDS:].view(torch.int32).tolist()
            if any(each[:2] != theirs[0][:2] for each in theirs):
                steps = ", ".join(str(step) for step, *_ in theirs)
                self._parted[number] = (
                    f"the workers of node {nodes.index} are at steps {steps}, or only some ask for details: "
                    "all ranks must call optimizer.step() equally often and use the same callbacks; was a "
                    "step skipped on one of them, or was only one of them resumed?"
                )
            total = received[0]
            for row in received[1:]:
                total[:-_WORDS] += row[:-_WORDS]
        return total, sum((worker[2] != 0) << place for place, worker in enumerate(theirs))

    def _pack_slice(self, total: Tensor, negative: Tensor, own: Bucket, missing: list[bool]) -> Tensor | None:
        """The node's votes on a slice; where it abstains, None for nowhere."""
        abstaining = self._packer.pack(total, own.part, negative)
        for index, is_missing in enumerate(missing, own.first):
            whole = self._layout.part(index)
            begin, end = max(whole.start, own.start), min(whole.stop, own.stop)
            if not is_missing or begin >= end:
                continue
            if abstaining is None:
                abstaining = self._scratch.get("abstaining", own.size).zero_()
            here = slice(begin - own.start, end - own.start)
            self._packer.abstain(index, slice(begin, end), negative[here], abstaining[here])
        return abstaining

    @override
    def _decide(self, number: int) -> None:
        if self._parted:
            raise RuntimeError(next(iter(self._parted.values())))
        try:
            super()._decide(number)
        except RuntimeError as error:
            peers = ", ".join(map(str, self._nodes.peers))
            raise RuntimeError(f"{error}\n(counted among the ranks {peers}, one of each node)") from error

    @override
    def _receive(self, number: int) -> None:
        terms, bucket, own = self._terms, self._buckets[number], self._own_buckets[number]
        outcome = self._exchanges[number].receive(self.planes[:, own.part], terms)
        with terms.traffic.timed("node_all_gather"), terms.traffic.inside_node():
            self._share(bucket, own, outcome)

    def _share(self, bucket: Bucket, own: Bucket, outcome: Outcome) -> None:
        """Give the other workers of the node the outcome on the own slice, and take theirs."""
        counts, tensors, size = outcome.counts, len(self._shapes), own.size
        numbers = VoteDetails.size(tensors, self._workers) if outcome.details is not None else 0
        head = np.zeros(_COUNTS + bucket.last - bucket.first + numbers, np.int64)
        undecided = None if self._undecided is None else self._undecided[own.part]
        has_undecided = undecided is not None and bool(undecided.any())
        head[:_COUNTS] = has_undecided, counts.votes, counts.margin, counts.ties, counts.silent
        present = head[_COUNTS : head.size - numbers]
        present[own.first - bucket.first : own.last - bucket.first] = outcome.present
        if outcome.details is not None:
            head[head.size - numbers :] = outcome.details.to_numbers()
        mine = self._scratch.get("mine", head.nbytes + size)
        mine[: head.nbytes] = torch.from_numpy(head.view(np.uint8)).to(self._device)
        mine[head.nbytes :] = self._negative[own.part]
        everyones = self._gather(mine)
        heads = everyones[:, : head.nbytes].cpu().numpy().copy().view(np.int64)
        self._negative[bucket.part].view(-1, size).copy_(everyones[:, head.nbytes :])
        self._share_undecided(bucket, undecided if has_undecided else None, bool(heads[:, 0].any()))
        for row in heads:
            flags = row[_COUNTS : row.size - numbers].astype(bool).tolist()
            for index, flag in enumerate(flags, bucket.first):
                self._present[index] |= flag
            details = row[row.size - numbers :]
            looks = VoteDetails.from_numbers(details, tensors, self._workers) if numbers else None
            counts = Counts(*row[1:_COUNTS].tolist())
            self._outcomes.append(Outcome(flags, counts, details=looks, nonfinite=outcome.nonfinite))

    def _share_undecided(self, bucket: Bucket, undecided: Tensor | None, anywhere: bool) -> None:
        if not anywhere:
            if self._undecided is not None:
                self._undecided[bucket.part] = 0
            return
        size = self._slice(bucket)
        mine = self._scratch.get("mine", size)
        if undecided is None:
            mine.zero_()
        else:
            mine.copy_(undecided)
        self._undecided_part(bucket).view(-1, size).copy_(self._gather(mine))

    def _gather(self, mine: Tensor) -> Tensor:
        everyones = self._scratch.get("everyones", self._nodes.workers, mine.numel())
        self._terms.traffic.all_gather(everyones, mine, self._nodes.inside).wait()
        return everyones
