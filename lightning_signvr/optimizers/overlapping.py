"""Begin to vote while backward still computes the gradients of earlier layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lightning_signvr.optimizers.gathering import trained, trained_parameters
from lightning_signvr.signs import check_signable
from lightning_signvr.voting import VotedSigns
from lightning_signvr.voting.group import group_of_its_own
from lightning_signvr.voting.open_vote import OpenVote

if TYPE_CHECKING:
    from lightning_signvr.optimizers.base import SignOptimizer


class Overlap:
    """Puts each gradient to the vote as soon as backward has it; made by :meth:`SignOptimizer.overlap`.

    The outcome is that of a vote after backward, to the last bit. The last gradients of a step must be those
    that are voted on, so:

    * with gradient accumulation all backward passes of a step but the last run in :meth:`paused`;
    * nothing may change a gradient after backward: no clipping, no unscaling.

    Both are checked.

    Attributes:
        is_paused: whether backward leaves the vote to ``step()``.
    """

    def __init__(self, optimizer: SignOptimizer) -> None:
        self.is_paused = False
        self._optimizer = optimizer
        self._open: OpenVote | None = None
        self._seen: dict[int, int] = {}  # versions of the gradients that were put, by the tensor's place
        self._places: dict[Tensor, tuple[int, dict[str, Any]]] = {}
        self._hooks: list[RemovableHandle] = []
        vote = optimizer.vote
        if vote.workers > 1:
            vote.exchange_group = group_of_its_own(vote.process_group)
            for parameter in trained_parameters(optimizer):
                hook = parameter.register_post_accumulate_grad_hook(self._put)  # type: ignore[no-untyped-call]
                self._hooks.append(hook)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """In the block backward passes add to the gradients, and no vote begins."""
        before, self.is_paused = self.is_paused, True
        try:
            yield
        finally:
            self.is_paused = before

    def close(self) -> None:
        """Vote after backward again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._optimizer.vote.exchange_group = self._optimizer.vote.process_group

    @torch.no_grad()
    def _put(self, parameter: Tensor) -> None:
        if self.is_paused:
            return
        vote = self._begin() if self._open is None else self._open
        if parameter not in self._places:
            raise RuntimeError(
                "a parameter got a gradient for the first time after the vote had begun: set requires_grad "
                "and add parameter groups before backward, or build the optimizer without overlap"
            )
        index, group = self._places[parameter]
        if index in self._seen:
            raise RuntimeError(
                f"tensor {index} got a second gradient after its first one was put to the vote: run all "
                "backward passes of a step but the last in `with optimizer.overlapped.paused():`, call "
                "optimizer.step() after each last one, or do without overlap"
            )
        assert parameter.grad is not None
        check_signable(parameter.grad, f"the gradient of tensor {index}")
        vote.put(index, self._optimizer.direction(parameter, group, index))
        self._seen[index] = parameter.grad._version

    def _begin(self) -> OpenVote:
        optimizer = self._optimizer
        pairs = trained(optimizer)
        self._places = {parameter: (index, group) for index, (parameter, group) in enumerate(pairs)}
        optimizer.vote.step = optimizer.param_groups[0]["step"]
        optimizer.forget_gradients()
        self._open = optimizer.vote.open([parameter for parameter, _ in pairs], backwards=True)
        return self._open

    def cast(self, parameters: Sequence[Tensor]) -> VotedSigns:
        """Put the rest of ``parameters`` to the vote, and end it.

        Raises:
            RuntimeError: a gradient was changed after it was put, or there are other parameters now.
        """
        vote = self._begin() if self._open is None else self._open
        places, seen = self._places, self._seen
        self._open, self._seen = None, {}
        if len(places) != len(parameters) or any(parameter not in places for parameter in parameters):
            raise RuntimeError(
                "requires_grad or the parameter groups changed after backward, when the vote had begun: do "
                "so before backward, or build the optimizer without overlap"
            )
        for parameter, (index, group) in reversed(places.items()):
            gradient = parameter.grad
            if index not in seen:
                vote.put(index, self._optimizer.direction(parameter, group, index))
            elif gradient is None or gradient._version != seen[index]:
                raise RuntimeError(
                    f"the gradient of tensor {index} was changed or removed after backward (by clipping, "
                    "unscaling, zero_grad?), and the vote had begun with what it was: do so without overlap"
                )
        return vote.close()
