"""Proximal signSGD: the proximal operator after the vote."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import override

from lightning_signvr.estimators.optional_momentum import OptionalMomentum
from lightning_signvr.optimizers.checks import check_fraction
from lightning_signvr.optimizers.regularized import RegularizedOptimizer
from lightning_signvr.proximal import Regularizer
from lightning_signvr.voting import MajorityVote, VotedSigns


class ProxSignSGD(RegularizedOptimizer):
    """``x <- prox_{lr r}(x - lr * (vote(sign(m)) + weight_decay * x))``, ``m`` the gradient or its average.

    signSGD or Signum with majority vote (Bernstein et al., ICLR 2019, arXiv 1810.05291), followed by the
    proximal operator of a regularizer ``r``, the same on all workers; not to be confused with
    :class:`SignProx`, which takes the sign of the proximal mapping. No paper: it is what "add a proximal
    step" gives, a decoupled regularizer as ``weight_decay`` is a decoupled l2.

    Its strength is measured in votes, not in gradients: with l1, a coordinate rests where the mean of its
    votes is ``-strength * sign(x)``, and is drawn to 0 where it is smaller than that. Useful strengths are
    therefore between 0 (no effect) and 1 (all coordinates end at 0), for any scale of the loss, and what is
    minimized is **not** ``d + r``: with exact gradients and a strength below 1, the loss alone is. Weights
    whose gradients are mostly noise vanish, and so do small weights. Constraints (``Box``, ``NonNegative``)
    hold exactly after each step; stationary points of the constrained loss stay so.

    No rate is known to us. Per parameter: 1 bit up, 1 bit down; no state, or one copy with momentum
    (float32 for 16-bit parameters); one gradient per step, one proximal operator. Each step moves a
    coordinate by ``lr``, so iterates oscillate within it: decay it. Zeros come and go until then: a
    coordinate at 0 leaves it with each vote, and returns; :meth:`clean_up` at the end makes them final. Like
    :class:`SignSGD`, it follows the workers' median, not their mean.

    A parameter without a gradient on all workers is left alone, by the proximal operator too.

    Args:
        params: parameters or groups; a group may have a ``regularizer`` of its own.
        lr: step of each coordinate and of the proximal operator (which is left out where it is 0); float
            or one-element tensor, at least 0.
        regularizer: see :mod:`lightning_signvr.proximal`; one that has an exact proximal operator, or None.
        momentum: weight of the old average, in [0, 1); 0 for the gradient itself.
        weight_decay: decoupled, at least 0.
        maximize: move uphill in the loss.
        vote: None for :class:`~lightning_signvr.voting.MajorityVote` with its defaults.

    Raises:
        TypeError: also a regularizer without an exact proximal operator (``TotalVariation2d``).
        ValueError: see :class:`SignOptimizer`.

    Example:
        >>> from lightning_signvr.proximal import NonNegative
        >>> weight = torch.nn.Parameter(torch.tensor([0.25, 0.25]))
        >>> weight.grad = torch.tensor([3.0, -0.1])
        >>> ProxSignSGD([weight], lr=0.5, regularizer=NonNegative()).step()
        >>> weight.data
        tensor([0.0000, 0.7500])
    """

    needs_exact_prox: ClassVar[bool] = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        regularizer: Regularizer | None = None,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        vote: MajorityVote | None = None,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, regularizer, defaults, OptionalMomentum(), vote)

    @override
    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        check_fraction("momentum", group["momentum"])

    @override
    def update(self, parameter: Tensor, votes: VotedSigns, index: int, group: dict[str, Any]) -> None:
        super().update(parameter, votes, index, group)
        regularizer, step = self.regularizer_of(group), self.prox_step(group)
        if regularizer is not None and step > 0:
            parameter.copy_(regularizer.prox(parameter, step))
