"""EF-Signum: error feedback up, the sign of the owner's momentum down."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import override

from lightning_signvr.estimators import ErrorFeedback
from lightning_signvr.optimizers.checks import check_fraction
from lightning_signvr.optimizers.error_feedback import ErrorFeedbackOptimizer
from lightning_signvr.voting import ScaledMeanVote


class EFSignum(ErrorFeedbackOptimizer):
    """``z <- momentum z + (1 - momentum) a``, ``x <- x - lr * (sign(z) + weight_decay * x)``.

    ``a`` is the mean over the workers of ``q = (||p||_1 / numel) sign(p)``, per tensor, with ``p = g + e``
    and ``e <- p - q`` kept by each worker. The mean momentum ``z`` is kept by the owner of each shard alone.
    A composition of this project; its parts are EF-signSGD (Karimireddy et al., ICML 2019, arXiv
    1901.09847) and two-way compressed momentum as in 1-bit Adam (arXiv 2102.02888). No theorem is claimed.

    It averages gradients instead of comparing their medians, so it is the first to try where the
    workers' data differ. It is not robust to hostile workers: a large scale outvotes the others.

    Per parameter: 1 bit up and a float32 per tensor, 1 bit down; state: one copy (``e``, float32 for 16-bit
    parameters) and 1/n of a copy (``z``); one gradient per step.

    Args:
        params: parameters or groups.
        lr: step of each coordinate, float or one-element tensor, at least 0; like Signum's.
        momentum: weight of the old average at the owner, in [0, 1).
        weight_decay: decoupled, at least 0.
        maximize: move uphill.
        vote: None for :class:`~lightning_signvr.voting.ScaledMeanVote` with its defaults.

    Raises:
        ValueError, TypeError: see :class:`SignOptimizer`.
        RuntimeError: in ``step()``: a gradient that is not finite, or a state of other workers.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = EFSignum([weight], lr=0.5, momentum=0.0)
        >>> weight.grad = torch.tensor([3.0, -1.0])  # sent as 2 and -2; 1 and 1 are kept
        >>> optimizer.step()
        >>> optimizer.state[weight]["error"], weight.data
        (tensor([1., 1.]), tensor([-0.5000,  0.5000]))
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        vote: ScaledMeanVote | None = None,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults, ErrorFeedback(), vote)

    @override
    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        check_fraction("momentum", group["momentum"])

    @override
    def serve(self, mean: Tensor, kept: Tensor, group: dict[str, Any]) -> Tensor:
        return kept.mul_(group["momentum"]).add_(mean, alpha=1 - group["momentum"])
