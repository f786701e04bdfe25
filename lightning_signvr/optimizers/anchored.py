"""Gradients of the same samples at other points: what variance reduction needs of an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_signvr.estimators import PREVIOUS
from lightning_signvr.optimizers.base import SignOptimizer
from lightning_signvr.optimizers.random_state import RandomState
from lightning_signvr.voting import VotedSigns


class AnchoredOptimizer(SignOptimizer):
    """A sign optimizer that compares gradients of one minibatch at several points.

    A point is an *anchor*: a name, and for each parameter the value that is kept in its state under
    ``anchors[name]``. Before each step, the gradients of the step's samples must be there for the
    current point, in ``.grad`` as ever, and for every active anchor. Three ways in:

    * ``optimizer.step(closure)`` calls the closure once for each point;
    * ``with optimizer.at(name): loss_of(batch).backward()`` by hand, after the normal backward pass;
    * :class:`~lightning_signvr.replay.Replay`, which also takes care of random numbers, buffers and
      metrics; ``SignVoteStrategy`` does that by itself.

    Attributes:
        anchors: name of each anchor and its key in a parameter's state.
        replays_closures: whether ``step(closure)`` calls the closure at the anchors. What steps the
            optimizer may set it to False to do that better.
    """

    anchors: dict[str, str] = {PREVIOUS: "previous_iterate"}  # noqa: RUF012
    replays_closures: bool = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._forget()
        self._away = False  # at an anchor
        super().__init__(*args, **kwargs)

    def needs(self, name: str, group: dict[str, Any]) -> bool:
        """Whether a group's parameters need gradients at an anchor."""
        return True

    def active_anchors(self) -> Sequence[str]:
        """The anchors at which this step's samples must be evaluated; none before the first step."""
        return [
            name
            for name, key in self.anchors.items()
            if any(
                self.needs(name, group) and any(key in self.state.get(p, {}) for p in group["params"])
                for group in self.param_groups
            )
        ]

    def anchor_gradients(self) -> list[Tensor]:
        """All gradients at anchors so far, to be unscaled or clipped in place together with ``.grad``."""
        return [tensor for tensors in self._gradients.values() for tensor in tensors.values()]

    @contextmanager
    def at(self, name: str) -> Iterator[None]:
        """Put the parameters to an anchor; gradients computed inside are kept for the next step.

        Call it once per microbatch, with the same samples, dropout masks and loss scale as at the
        current point; the gradients add up. ``.grad`` and the parameters are put back at the end, to
        the last bit. Where the anchor does not exist yet (before the first step), the block runs at the
        current point and its gradients are dropped.

        Args:
            name: one of ``anchors``.

        Raises:
            ValueError: an unknown anchor.
        """
        if name not in self.anchors:
            raise ValueError(f"name must be one of {', '.join(map(repr, self.anchors))}, got {name!r}")
        parameters = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        kept = [(p, p.grad, p.detach().clone()) for p in parameters]
        self._away = True
        try:
            for parameter in parameters:
                anchor = self.state.get(parameter, {}).get(self.anchors[name])
                parameter.grad = None
                if anchor is not None:
                    parameter.detach().copy_(anchor)
            yield
            if name in self.active_anchors():
                self._collect(name, parameters)
        finally:
            for parameter, gradient, value in kept:
                parameter.detach().copy_(value)
                parameter.grad = gradient
            self._away = False

    def at_previous_iterate(self) -> Any:
        """``at("previous")``: the point before the last step."""
        return self.at(PREVIOUS)

    def _collect(self, name: str, parameters: Sequence[Tensor]) -> None:
        if all(parameter.grad is None for parameter in parameters):
            return  # nothing was evaluated
        self._evaluated.add(name)
        gradients = self._gradients.setdefault(name, {})
        for parameter in parameters:
            if parameter.grad is None:
                continue
            if parameter in gradients:
                gradients[parameter].add_(parameter.grad)
            else:
                gradients[parameter] = parameter.grad.detach().clone()

    def _forget(self) -> None:
        self._gradients: dict[str, dict[Tensor, Tensor]] = {}
        self._evaluated: set[str] = set()

    def __setstate__(self, state: dict[str, Any]) -> None:  # unpickled, copied or loaded
        super().__setstate__(state)
        self._forget()
        self._away = False

    @override
    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's; outside of :meth:`at` also for the gradients at anchors."""
        super().zero_grad(set_to_none)
        if not self._away:
            self._forget()

    @override
    def evaluate(self, closure: Callable[[], Any] | None) -> Any:
        """Run the closure at the current point, and with the same random numbers at each anchor."""
        if closure is None or not self.replays_closures:
            loss = super().evaluate(closure)
        else:
            before = RandomState.capture()
            loss = super().evaluate(closure)
            after = RandomState.capture()
            for name in self._unevaluated():
                before.restore()
                with self.at(name):
                    super().evaluate(closure)
            after.restore()
        self._check_complete(self._unevaluated())
        return loss

    def _unevaluated(self) -> Sequence[str]:
        return [name for name in self.active_anchors() if name not in self._evaluated]

    def _check_complete(self, missing: Sequence[str]) -> None:
        if missing and any(p.grad is not None for group in self.param_groups for p in group["params"]):
            points = " and ".join(map(repr, missing))
            raise RuntimeError(
                f"{type(self).__name__} needs the gradients of this step's samples at {points} too, and they "
                "are missing. Pass a closure to step() (not with a GradScaler, which takes none), or repeat "
                f"the backward pass inside `with optimizer.at({missing[0]!r}):`, or use "
                'lightning_signvr.replay.Replay; under Lightning use strategy="sign_vote", and with manual '
                "optimization optimizer.step(closure)."
            )

    @override
    def gradients_elsewhere(self, parameter: Tensor) -> dict[str, Tensor]:
        assert parameter.grad is not None
        elsewhere = {}
        for name in self._evaluated:
            gradient = self._gradients[name].get(parameter)
            # none at a point that was evaluated (the samples took another route there) is a zero
            elsewhere[name] = torch.zeros_like(parameter.grad) if gradient is None else gradient
        return elsewhere

    @override
    def before_update(self, parameter: Tensor, votes: VotedSigns, index: int, group: dict[str, Any]) -> None:
        """Remember where the parameter is."""
        if PREVIOUS not in self.anchors:
            return
        state, key = self.state[parameter], self.anchors[PREVIOUS]
        if not self.needs(PREVIOUS, group):
            state.pop(key, None)
        elif key in state:
            state[key].copy_(parameter)
        else:
            state[key] = parameter.detach().clone()

    @torch.no_grad()
    @override
    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        self._forget()
        return loss
