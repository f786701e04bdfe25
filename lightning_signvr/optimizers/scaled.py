"""Optimizers whose workers send a scale with their signs, and whose owners keep a state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_signvr.optimizers.base import SignOptimizer
from lightning_signvr.optimizers.resizing import OWNER, WHOLE, own_shard
from lightning_signvr.voting import MajorityVote, ScaledMeanVote, VotedSigns
from lightning_signvr.voting.layout import Layout
from lightning_signvr.voting.nonfinite import MaybeDirection, NotFinite

Answer = Tensor | tuple[Tensor, float]


class ScaledOptimizer(SignOptimizer, ABC):
    """A sign optimizer that votes by :class:`~lightning_signvr.voting.ScaledMeanVote`.

    Subclasses set the scale of each tensor in :meth:`encode` by :meth:`send_scale`, and say in
    :meth:`serve` what the owner of a shard makes of the mean.

    Attributes:
        scaled_answer: whether the owner's signs come back with a factor.
    """

    scaled_answer: bool = False
    vote_class: type[MajorityVote] = ScaledMeanVote

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._scales: list[float] = []  # of this step, by the tensor's place
        super().__init__(*args, **kwargs)

    def __setstate__(self, state: dict[str, Any]) -> None:  # unpickled, copied or loaded
        super().__setstate__(state)
        self._scales = []

    def send_scale(self, index: int, scale: Tensor) -> float:
        """Send ``scale`` with tensor ``index``; its value as it arrives, rounded to float32."""
        rounded = float(scale.float())
        self._scales[index] = rounded
        return rounded

    @abstractmethod
    def serve(self, mean: Tensor, kept: Tensor, group: dict[str, Any]) -> Answer:
        """The numbers whose signs go back to all workers; with ``scaled_answer`` and their factor.

        Args:
            mean: mean of the workers' scaled signs on a part of a tensor.
            kept: the owner's state on that part, 0 at first, to be updated in place.
            group: the parameter's hyper-parameters.
        """

    def answer(self, numbers: Answer, index: int, first: int) -> Answer:
        """What goes back of what :meth:`serve` gave, in the same form: here that itself.

        Args:
            numbers: not to be changed, they may be the owner's state.
            index: the parameter's place among all that vote, to key random numbers with.
            first: the first of the numbers in the tensor, a multiple of 8, likewise.
        """
        return numbers

    def exact_directions(self, parameters: Sequence[Tensor]) -> Sequence[Tensor | None] | None:
        """Directions that the owners are to know in full precision; None for scaled signs, as ever."""
        return None

    @override
    def cast(self, parameters: Sequence[Tensor], groups: Sequence[dict[str, Any]]) -> VotedSigns:
        assert isinstance(self.vote, ScaledMeanVote)
        self._scales = [0.0] * len(parameters)
        before: list[tuple[int, Tensor, Tensor]] = []
        silent = [False] * len(parameters)  # this worker, on each of them
        offsets = Layout.of(parameters).offsets

        def server(index: int, elements: slice, size: int, mean: Tensor) -> Answer:
            kept = self._owned(size, mean.device)[elements]
            if silent[index]:  # maybe every worker: such a parameter is left alone
                before.append((index, kept, kept.clone()))
            first = self.vote.rank * size + elements.start - 8 * offsets[index]
            return self.answer(self.serve(mean, kept, groups[index]), index, first)

        def directions() -> Iterator[MaybeDirection]:
            for index, direction in enumerate(self.directions(parameters, groups)):
                silent[index] = direction is None or isinstance(direction, NotFinite)
                yield direction

        exact = self.exact_directions(parameters)
        votes = self.vote.cast(directions(), self._scales, server, parameters, self.scaled_answer, exact)
        for index, kept, value in before:
            if not votes.present[index]:
                kept.copy_(value)
        return votes

    def _owned(self, size: int, device: torch.device) -> Tensor:
        """This rank's state as an owner, one float32 per element of its shard."""
        if OWNER not in self.state:
            self.state[OWNER] = {"estimate": torch.zeros(size, device=device)}
        owned = self.state[OWNER]
        if WHOLE in owned:  # of another number of workers
            owned["estimate"] = own_shard(owned.pop(WHOLE), self.vote.rank, size)
        kept: Tensor = owned["estimate"]
        if kept.numel() != size:
            raise RuntimeError(
                f"the state of {type(self).__name__} is of a shard of {kept.numel()} elements, and this "
                f"worker owns one of {size}: it was saved with another number of workers or other "
                "parameters; resume with the same, or start a new optimizer from the weights"
            )
        return kept
