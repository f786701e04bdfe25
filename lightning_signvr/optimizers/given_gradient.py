"""Steps that take a gradient over many batches in the place of their minibatch's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from typing_extensions import override

from lightning_signvr.estimators import FULL_GRADIENT
from lightning_signvr.optimizers.anchored import AnchoredOptimizer
from lightning_signvr.optimizers.gathering import trained_parameters


class GivenGradientOptimizer(AnchoredOptimizer, ABC):
    """A sign optimizer that can be given the gradient of its next step beforehand.

    That step then needs no gradient of a minibatch, here or at an anchor; it replaces ``.grad`` by what it
    was given, which is freed from the state. A parameter that was given none takes no part.
    """

    _given: bool = False  # whether this step's gradient was

    @abstractmethod
    def gradient_is_given(self) -> bool:
        """Whether the next step has its gradient already."""

    def give_gradients(self, gradients: dict[Tensor, Tensor]) -> None:
        """Keep the gradients of the next step."""
        for parameter in trained_parameters(self):
            self.state[parameter].pop(FULL_GRADIENT, None)
            if parameter in gradients:
                self.state[parameter][FULL_GRADIENT] = gradients[parameter]

    @override
    def active_anchors(self) -> Sequence[str]:
        return [] if self.gradient_is_given() else super().active_anchors()

    @override
    def evaluate(self, closure: Callable[[], Any] | None) -> Any:
        loss = super().evaluate(closure)
        self._given = self.gradient_is_given()
        if self._given:
            for parameter in trained_parameters(self):
                parameter.grad = self.state[parameter].pop(FULL_GRADIENT, None)
        return loss
