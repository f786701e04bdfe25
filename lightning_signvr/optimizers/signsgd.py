"""signSGD with majority vote."""

from __future__ import annotations

from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_signvr.estimators import RawGradient
from lightning_signvr.optimizers.base import SignOptimizer
from lightning_signvr.voting import MajorityVote


class SignSGD(SignOptimizer):
    """``x <- x - lr * (vote(sign(g)) + weight_decay * x)``.

    Bernstein et al., "signSGD: Compressed Optimisation for Non-Convex Problems" (ICML 2018, arXiv
    1802.04434) and "signSGD with Majority Vote" (ICLR 2019, arXiv 1810.05291, algorithm 1 with
    beta = 0; its weight decay is decoupled and scaled by the learning rate, as here).

    Per parameter: 1 bit up, 1 bit down, no state; one gradient per step. Each step moves a coordinate
    by ``lr``: decay it, and expect values like Adam's, not SGD's. Compares the *median* of the workers'
    gradients with 0, not their mean: on skewed data it need not converge.

    Args:
        params: parameters or groups.
        lr: step of each coordinate, float or one-element tensor, at least 0.
        weight_decay: decoupled, at least 0.
        maximize: move uphill.
        vote: None for :class:`~lightning_signvr.voting.MajorityVote` with its defaults.

    Raises:
        ValueError, TypeError: see :class:`SignOptimizer`.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, -0.1])
        >>> SignSGD([weight], lr=0.5).step()
        >>> weight.data
        tensor([-0.5000,  0.5000])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        vote: MajorityVote | None = None,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults, RawGradient(), vote)
