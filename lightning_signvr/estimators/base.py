"""What an estimator is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from lightning_signvr.signs import Direction

PREVIOUS = "previous"
"""Name of the anchor ``x_{t-1}``: see :class:`~lightning_signvr.optimizers.AnchoredOptimizer`."""

SNAPSHOT = "snapshot"
"""Name of the anchor at which the full gradient is known."""


class Estimator(Protocol):
    """What one worker believes the direction of the full gradient to be.

    It sees one parameter at a time and keeps what it needs in that parameter's optimizer state.

    It may have a second method ``recipe`` with the same arguments, which returns a
    :class:`~lightning_signvr.signs.Recipe` of what a call would compute, or the tensor where there is none.
    """

    def __call__(
        self,
        gradient: Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
        at: Mapping[str, Tensor],
    ) -> Tensor:
        """The direction whose sign is voted on.

        Args:
            gradient: this worker's gradient of the parameter; must not be changed or kept (torch
                may reuse its memory: copy it to keep it).
            state: the parameter's state; what is put there is saved with the optimizer.
            group: the parameter's group of hyper-parameters.
            at: gradients of the same samples at other points, by the anchor's name. Empty where the
                method has no anchors, or none yet.

        Returns:
            Tensor of the gradient's shape. It may be the gradient or a buffer in ``state``.
        """
        ...


def recipe_of(estimator: Estimator) -> Callable[..., Direction] | None:
    """An estimator's method ``recipe``; None where it has none, or one of a class whose call it changes."""
    for kind in type(estimator).__mro__:
        if "recipe" in vars(kind):
            method: Callable[..., Direction] = estimator.recipe  # type: ignore[attr-defined]
            return method
        if "__call__" in vars(kind):
            return None
    return None
