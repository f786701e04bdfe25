"""What a vote decided, still packed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from typing_extensions import override

from lightning_signvr.signs import Counts, add_signs_, pack_signs, read_planes, unpack_signs
from lightning_signvr.voting.details import VoteDetails
from lightning_signvr.voting.layout import Layout


@dataclass
class VotedSigns:
    """The aggregated sign of each coordinate, identical on all ranks.

    The planes belong to the vote and are overwritten by its next call.

    Attributes:
        layout: where each tensor's bits are.
        shapes: of the tensors.
        planes: uint8, ``[k, bytes]``; for plain signs k = 1 and a bit is 1 where the vote is -1.
        undecided: uint8 plane, 1 where nothing was decided; None where there is no such coordinate.
        present: per tensor, whether any worker voted on it. An optimizer leaves the others alone.
        counts: sums over all coordinates.
        workers: number of workers that could vote.
        scales: float32, ``[workers, tensors]``, the numbers that the workers sent with their votes; None
            for none.
        details: a closer look, where the vote's ``detailed`` was set; None otherwise.
        nonfinite: the ranks that did not vote on some tensor, as their gradient of it has NaN or inf.
    """

    layout: Layout
    shapes: Sequence[torch.Size]
    planes: Tensor
    undecided: Tensor | None
    present: Sequence[bool]
    counts: Counts
    workers: int
    scales: Tensor | None = None
    details: VoteDetails | None = None
    nonfinite: Sequence[int] = ()
    _arrivals: Iterator[Sequence[int]] | None = field(default=None, init=False, repr=False, compare=False)

    def arrivals(self) -> Iterator[int]:
        """The index of each tensor, as soon as its outcome is there; a collective where that is to come."""
        for indices in self.batches():
            yield from indices

    def batches(self) -> Iterator[Sequence[int]]:
        """:meth:`arrivals`, those together whose outcome is there at once."""
        arrivals, self._arrivals = self._arrivals, None
        yield from [range(len(self.shapes))] if arrivals is None else arrivals

    def follow(self, arrivals: Iterator[Sequence[int]]) -> None:
        """The outcome is still to come, by ``arrivals``."""
        self._arrivals = arrivals

    @property
    def negative(self) -> Tensor:
        """uint8 plane, 1 where the vote is -1."""
        return self.planes[0]

    def packed(self, index: int) -> tuple[Tensor, Tensor | None]:
        """Bits of tensor ``index`` in ``negative`` and in ``undecided`` (None where that is None)."""
        part = self.layout.part(index)
        return self.negative[part], None if self.undecided is None else self.undecided[part]

    def signs(self, index: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Tensor ``index`` of the vote as -1, 0 and +1 in its own shape; all 0 where nobody voted."""
        if not self.present[index]:
            return torch.zeros(self.shapes[index], dtype=dtype, device=self.planes.device)
        negative, zeros = self.packed(index)
        return unpack_signs(negative, self.layout.numels[index], dtype, zeros).view(self.shapes[index])

    def values(self, index: int) -> Tensor:
        """What :meth:`add_to_` adds ``alpha`` times, float32: here the signs."""
        return self.signs(index)

    def add_to_(self, index: int, target: Tensor, alpha: float, decay: float = 1.0) -> Tensor:
        """``target = decay * target + alpha * vote`` in place; untouched where nobody voted."""
        if not self.present[index]:
            return target
        negative, zeros = self.packed(index)
        return add_signs_(target, negative, alpha, zeros=zeros, decay=decay)

    @property
    def agreement(self) -> float:
        """Mean of ``|sum of signs| / voters``, weighted by voters: 1 if all agree, NaN if nobody voted.

        n fair coins have an agreement of about ``0.8 / sqrt(n)``: that is what pure noise looks like.
        """
        return self.counts.agreement

    @property
    def tie_rate(self) -> float:
        """Share of the coordinates that were tied."""
        return self.counts.ties / max(1, self.layout.num_parameters)

    @property
    def abstain_rate(self) -> float:
        """Share of the possible votes that were not cast."""
        possible = self.layout.num_parameters * self.workers
        return 1.0 - self.counts.votes / possible if possible else 0.0


class _VotedNumbers(VotedSigns):
    """An outcome that has magnitudes."""

    @override
    def add_to_(self, index: int, target: Tensor, alpha: float, decay: float = 1.0) -> Tensor:
        if not self.present[index]:
            return target
        if decay != 1.0:
            target.mul_(decay)
        return target.add_(self.values(index), alpha=alpha)


@dataclass
class VotedMeans(_VotedNumbers):
    """The mean of the workers' signs, of which an abstention counts as 0; see :class:`MeanVote`.

    Attributes:
        counts_abstentions: whether the planes hold ``workers + sum of signs`` (0 to 2 n) or only how many
            signs are + (0 to n).
    """

    counts_abstentions: bool = False

    @override
    def values(self, index: int) -> Tensor:
        shape = self.shapes[index]
        if not self.present[index]:
            return torch.zeros(shape, device=self.planes.device)
        numbers = read_planes(self.planes[:, self.layout.part(index)], self.layout.numels[index])
        if not self.counts_abstentions:
            numbers.mul_(2)
        return numbers.sub_(self.workers).div_(self.workers).view(shape)

    @override
    def signs(self, index: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.values(index).sign().to(dtype)

    @property
    @override
    def negative(self) -> Tensor:
        plane = torch.zeros_like(self.planes[0])
        for index in range(len(self.shapes)):
            pack_signs(self.values(index), plane[self.layout.part(index)])
        return plane


@dataclass
class VotedScaledSigns(_VotedNumbers):
    """Signs with a factor per tensor and shard; see :class:`ScaledMeanVote`.

    Attributes:
        answers: float32, ``[workers, tensors]``: each owner's factor of the part that it owns.
        shard: bytes of a plane that each rank owns.
    """

    answers: Tensor | None = None
    shard: int = 0

    @override
    def values(self, index: int) -> Tensor:
        assert self.answers is not None
        values = self.signs(index)
        flat, start = values.view(-1), self.layout.offsets[index]
        for owner, factors in enumerate(self.answers.tolist()):
            first, last = (max(0, (owner + k) * self.shard - start) * 8 for k in (0, 1))
            flat[first:last].mul_(factors[index])
        return values
