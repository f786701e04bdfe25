"""What is known of a step's gradients: whether they are finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from lightning_signvr.signs.finite import are_finite


class FiniteGradients:
    """Looks at gradients one parameter after the other, or at all of them at once.

    The first leaves them in the cache for whoever reads them next, the second waits for a device once.
    """

    def __init__(self) -> None:
        self._known: dict[Tensor, bool] = {}

    def look(self, gradients: Mapping[Tensor, Sequence[Tensor]]) -> bool:
        """Whether all are finite, given those of each parameter."""
        found = are_finite([gradient for of_one in gradients.values() for gradient in of_one])
        self._known, first = {}, 0
        for parameter, of_one in gradients.items():
            self._known[parameter] = all(found[first : first + len(of_one)])
            first += len(of_one)
        return all(found)

    def forget(self) -> None:
        """Another step begins."""
        self._known = {}

    def of(self, parameter: Tensor, gradients: Sequence[Tensor]) -> bool:
        """Whether a parameter's gradients are finite."""
        known = self._known.get(parameter)
        return all(are_finite(gradients)) if known is None else known
