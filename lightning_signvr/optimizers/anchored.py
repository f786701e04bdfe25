"""Gradients of the same samples at other points: what variance reduction needs of an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_signvr.estimators import PREVIOUS
from lightning_signvr.optimizers import previous_iterate
from lightning_signvr.optimizers.base import SignOptimizer
from lightning_signvr.optimizers.checks import check_choice
from lightning_signvr.optimizers.exchange import exchanged
from lightning_signvr.optimizers.gathering import trained_parameters
from lightning_signvr.optimizers.gradient_apart import gradient_apart, take_gradient
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
        self._start()
        super().__init__(*args, **kwargs)

    @override
    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        check_choice("previous_iterate", group.get("previous_iterate", "copy"), previous_iterate.MODES)

    def needs(self, name: str, group: dict[str, Any]) -> bool:
        """Whether a group's parameters need gradients at an anchor."""
        return True

    def active_anchors(self) -> Sequence[str]:
        """The anchors at which this step's samples must be evaluated; none before the first step."""
        return [
            name
            for name in self.anchors
            if any(
                self.needs(name, group) and any(self._is_known(name, p) for p in group["params"])
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
        current point. Inside the block ``.grad`` is what was collected at this anchor so far, so that
        backward passes add to it; ``zero_grad()`` there drops that alone. At the end the parameters and
        ``.grad`` are put back, to the last bit; if the block raises, what was collected is dropped. Where
        the anchor does not exist yet (before the first step), the block runs at the current point and its
        gradients are dropped.

        Parameters and anchor exchange their contents, without a copy: inside the block the anchor's state
        holds the current point. Do not save the optimizer's state there.

        Args:
            name: one of ``anchors``.

        Raises:
            ValueError: an unknown anchor.
            RuntimeError: inside another such block.
        """
        if name not in self.anchors:
            raise ValueError(f"name must be one of {', '.join(map(repr, self.anchors))}, got {name!r}")
        self._check_at_home(f"at({name!r})")
        parameters = trained_parameters(self)
        own = [parameter.grad for parameter in parameters]
        collected = self._gradients.get(name, {})
        self._visiting.append(name)
        with ExitStack() as way_back:
            way_back.callback(self._visiting.clear)
            for parameter in parameters:
                way_back.enter_context(gradient_apart(parameter, collected.get(parameter)))
                way_back.enter_context(self._visit(name, parameter))
            self._gradients.pop(name, None)
            try:
                yield
            except BaseException:
                if collected:
                    self._incomplete.add(name)
                raise
            if name in self.active_anchors():
                self._collect(name, zip(parameters, own, strict=True))

    def at_previous_iterate(self) -> Any:
        """``at("previous")``: the point before the last step."""
        return self.at(PREVIOUS)

    def _collect(self, name: str, pairs: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Keep the gradients at an anchor, given the parameters and their gradients at the current point."""
        taken = {parameter: take_gradient(parameter, own) for parameter, own in pairs}
        gradients = {parameter: gradient for parameter, gradient in taken.items() if gradient is not None}
        if gradients:  # else nothing was evaluated
            self._gradients[name] = gradients

    def _visit(self, name: str, parameter: Tensor) -> AbstractContextManager[None]:
        """A block in which a parameter is at an anchor, if it has it."""
        state, key = self.state.get(parameter, {}), self.anchors[name]
        if key in state:  # the dtype may be that of the model that saved it
            state[key] = state[key].to(parameter.device, parameter.dtype)
        if name == PREVIOUS:
            return previous_iterate.visited(parameter, state)
        return exchanged(parameter, state[key]) if key in state else nullcontext()

    def _is_known(self, name: str, parameter: Tensor) -> bool:
        state = self.state.get(parameter, {})
        return previous_iterate.is_known(state) if name == PREVIOUS else self.anchors[name] in state

    def _check_at_home(self, what: str) -> None:
        if self._visiting:
            raise RuntimeError(f"{what} was called inside a block of at(): leave the block first")

    def _start(self) -> None:
        # from here on changed in place alone: the wrappers of Lightning and Fabric, whose methods users call,
        # share these objects with the optimizer, but not what is assigned to an attribute
        self._gradients: dict[str, dict[Tensor, Tensor]] = {}  # of anchors that were evaluated
        self._incomplete: set[str] = set()  # anchors some of whose gradients were lost
        self._visiting: list[str] = []  # the anchor of the block of at() that is running

    def _forget(self) -> None:
        self._gradients.clear()
        self._incomplete.clear()

    def __setstate__(self, state: dict[str, Any]) -> None:  # unpickled, copied or loaded
        super().__setstate__(state)
        if "_visiting" in self.__dict__:
            self._forget()
            self._visiting.clear()
        else:
            self._start()

    @override
    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's; outside of :meth:`at` also for the gradients at anchors."""
        super().zero_grad(set_to_none)
        if not self._visiting:
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
        complete = self._gradients.keys() - self._incomplete
        return [name for name in self.active_anchors() if name not in complete]

    def _check_complete(self, missing: Sequence[str]) -> None:
        if missing and any(p.grad is not None for group in self.param_groups for p in group["params"]):
            points = " and ".join(map(repr, missing))
            raise RuntimeError(
                f"{type(self).__name__} needs the gradients of this step's samples at {points} too, and they "
                "are missing. Pass a closure to step() (not with a GradScaler, which takes none), or repeat "
                f"the backward pass inside `with optimizer.at({missing[0]!r}):`, or use "
                'lightning_signvr.replay.Replay; under Lightning use strategy="sign_vote" or add '
                "lightning_signvr.callbacks.SecondGradient() to the Trainer's callbacks, and with manual "
                "optimization optimizer.step(closure); under Accelerate sv.backward(loss_of)."
            )

    @override
    def gradients(self, parameter: Tensor) -> list[Tensor]:
        elsewhere = [gradients[parameter] for gradients in self._gradients.values() if parameter in gradients]
        return [*super().gradients(parameter), *elsewhere]

    @override
    def gradients_elsewhere(self, parameter: Tensor) -> dict[str, Tensor]:
        assert parameter.grad is not None
        elsewhere = {}
        for name, gradients in self._gradients.items():
            gradient = gradients.get(parameter)
            # none at a point that was evaluated (the samples took another route there) is a zero
            elsewhere[name] = torch.zeros_like(parameter.grad) if gradient is None else gradient
        return elsewhere

    @override
    def before_update(self, parameter: Tensor, votes: VotedSigns, index: int, group: dict[str, Any]) -> None:
        """Remember where the parameter is."""
        if PREVIOUS not in self.anchors:
            return
        state = self.state[parameter]
        if not self.needs(PREVIOUS, group):
            previous_iterate.forget(state)
        elif self._copies(group):
            previous_iterate.keep_copy(state, parameter)
        else:
            previous_iterate.keep_move(state, votes, index, *self.move(group))

    @override
    def room_for_old(self, parameters: Sequence[Tensor], group: dict[str, Any]) -> Sequence[Tensor] | None:
        if type(self).before_update is not AnchoredOptimizer.before_update:
            return None
        if PREVIOUS not in self.anchors or not self.needs(PREVIOUS, group) or not self._copies(group):
            return None
        return [previous_iterate.room_for_copy(self.state[parameter], parameter) for parameter in parameters]

    @staticmethod
    def _copies(group: dict[str, Any]) -> bool:
        """Whether the previous iterate is kept as it is."""
        return bool(group.get("previous_iterate", "copy") == "copy")

    @property
    @override
    def why_not_overlap(self) -> str | None:
        name = type(self).__name__
        return f"{name} compares gradients at two points, the second of which comes after backward"

    @torch.no_grad()
    @override
    def step(self, closure: Any = None) -> Any:
        self._check_at_home("step()")
        for group in self.param_groups:
            self._check_reversible(group)
        loss = super().step(closure)
        self._forget()
        return loss

    def _check_reversible(self, group: dict[str, Any]) -> None:
        if group.get("previous_iterate") != "rebuild" or not self.needs(PREVIOUS, group):
            return
        if self.move(group)[1] <= 0:
            lr, weight_decay = float(group["lr"]), group["weight_decay"]
            raise ValueError(
                f'previous_iterate="rebuild" needs lr * weight_decay below 1, got {lr} * {weight_decay}: '
                'lower one of them, or use previous_iterate="copy"'
            )
