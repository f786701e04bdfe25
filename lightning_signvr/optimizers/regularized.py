"""Sign optimizers of a loss plus a regularizer."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import override

from lightning_signvr.estimators import Estimator
from lightning_signvr.optimizers.base import SignOptimizer
from lightning_signvr.proximal import Regularizer
from lightning_signvr.voting import MajorityVote


class RegularizedOptimizer(SignOptimizer):
    """A sign optimizer of ``d(x) + r(x)``: ``d`` is the loss it differentiates, ``r`` the regularizers.

    A parameter group may bring a ``regularizer`` of its own, None for none; the others have the one of the
    constructor. Each parameter is regularized by itself. Regularizers are attributes of the optimizer and
    no entries of the group: ``state_dict()`` holds numbers and tensors alone, and a run resumes with those
    that its optimizer was built with.

    Args:
        params, defaults, estimator, vote: as for :class:`SignOptimizer`.
        regularizer: of the groups without one of their own; None for none.

    Attributes:
        regularizers: of each group, in the order of ``param_groups``.

    Raises:
        TypeError: a regularizer that is none, or that has no exact proximal operator where the method
            needs one.
        ValueError: see :class:`SignOptimizer`.
    """

    needs_exact_prox: ClassVar[bool] = False
    """Whether averages of the components' proximal operators do not do."""

    def __init__(
        self,
        params: ParamsT,
        regularizer: Regularizer | None,
        defaults: dict[str, Any],
        estimator: Estimator,
        vote: MajorityVote | None = None,
    ) -> None:
        self._default_regularizer = regularizer
        self.regularizers: list[Regularizer | None] = []
        self._check_regularizer(regularizer)
        super().__init__(params, defaults, estimator, vote)

    def _check_regularizer(self, regularizer: Any) -> None:
        if regularizer is None:
            return
        if not isinstance(regularizer, Regularizer):
            raise TypeError(
                f"regularizer must be one of lightning_signvr.proximal (such as L1(1e-4)) or None, "
                f"got {regularizer!r}"
            )
        if self.needs_exact_prox and not regularizer.exact_prox:
            raise TypeError(
                f"regularizer {regularizer!r} has no exact proximal operator, which {type(self).__name__} "
                "needs: use SignProx, which averages those of its components"
            )

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        regularizer = self._default_regularizer
        if isinstance(param_group, dict) and "regularizer" in param_group:
            param_group = dict(param_group)
            regularizer = param_group.pop("regularizer")
            self._check_regularizer(regularizer)
        super().add_param_group(param_group)
        self.regularizers.append(regularizer)

    def regularizer_of(self, group: dict[str, Any]) -> Regularizer | None:
        """The regularizer of one of ``param_groups``."""
        for own, regularizer in zip(self.param_groups, self.regularizers, strict=True):
            if own is group:
                return regularizer
        raise ValueError("group is not one of this optimizer's param_groups")

    def prox_step(self, group: dict[str, Any]) -> float:
        """Step of the group's proximal operator: here the learning rate."""
        return float(group["lr"])

    @torch.no_grad()
    def clean_up(self, step: float | None = None) -> None:
        """``x <- prox(x, step)``, once after training: makes zeros (flat regions, low ranks) exact.

        Iterates end within about one learning rate of where they belong. With l1, ``step = 2 * lr /
        strength``, where ``lr`` is that of the last steps, sets to 0 what is within ``2 * lr`` of it and
        moves the rest by as much. Not a collective: equal replicas stay equal.

        Args:
            step: of the proximal operator, above 0; None for each group's own (the learning rate, where
                no other is given).

        Raises:
            ValueError: the step is not above 0; with None, where a schedule has ended at 0.
        """
        for group, regularizer in zip(self.param_groups, self.regularizers, strict=True):
            if regularizer is None:
                continue
            size = self.prox_step(group) if step is None else step
            if not size > 0:
                raise ValueError(
                    f"step of the clean-up must be above 0, got {size}: pass one, such as 2 * lr / strength "
                    "with the learning rate of the last steps"
                )
            for parameter in group["params"]:
                if parameter.requires_grad:
                    parameter.copy_(_prox(regularizer, parameter, size))

    @override
    def __getstate__(self) -> dict[str, Any]:
        extra = ("_default_regularizer", "regularizers")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in extra}}


def _prox(regularizer: Regularizer, x: Tensor, step: float) -> Tensor:
    """The proximal operator, or the mean of the components' where there is none."""
    if regularizer.exact_prox:
        return regularizer.prox(x, step)
    moves = [x - component.prox(x, step) for component in regularizer.components]
    return x - sum(moves[1:], moves[0]) / len(moves)
