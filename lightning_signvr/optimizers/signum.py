"""Signum: signSGD with momentum, by majority vote."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_signvr.estimators import Momentum
from lightning_signvr.optimizers.base import SignOptimizer
from lightning_signvr.optimizers.checks import check_fraction
from lightning_signvr.voting import MajorityVote


class Signum(SignOptimizer):
    """``m <- momentum * m + (1 - momentum) * g``; ``x <- x - lr * (vote(sign(m)) + weight_decay * x)``.

    Bernstein et al., "signSGD with Majority Vote" (ICLR 2019, arXiv 1810.05291, algorithm 1). Each
    worker's momentum is its own and never sent. With one worker this is Signum of arXiv 1802.04434.

    Per parameter: 1 bit up, 1 bit down, one copy of state (float32 for 16-bit parameters); one gradient
    per step. Each step moves a coordinate by ``lr``: start from Adam's learning rate and decay it.

    Args:
        params: parameters or groups.
        lr: step of each coordinate, float or one-element tensor, at least 0.
        momentum: weight of the old average, in [0, 1).
        weight_decay: decoupled, at least 0.
        maximize: move uphill.
        vote: None for :class:`~lightning_signvr.voting.MajorityVote` with its defaults.

    Raises:
        ValueError, TypeError: see :class:`SignOptimizer`.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = Signum([weight], lr=0.5, momentum=0.9)
        >>> for gradient in ([3.0, -1.0], [-1.0, -1.0]):  # the average stays positive
        ...     weight.grad = torch.tensor(gradient)
        ...     optimizer.step()
        >>> weight.data
        tensor([-1.,  1.])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        vote: MajorityVote | None = None,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults, Momentum(), vote)

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        check_fraction("momentum", group["momentum"])
