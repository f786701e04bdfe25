"""EF-Lion: error feedback up, Lion's sign at the owner down."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import override

from lightning_signvr.estimators import ErrorFeedback
from lightning_signvr.optimizers.checks import check_betas
from lightning_signvr.optimizers.error_feedback import ErrorFeedbackOptimizer
from lightning_signvr.voting import ScaledMeanVote


class EFLion(ErrorFeedbackOptimizer):
    """``s = sign(b1 z + (1 - b1) a)``, ``z <- b2 z + (1 - b2) a``, ``x <- x - lr * (s + weight_decay * x)``.

    ``a`` is the mean of the workers' compressed gradients with error feedback, as in :class:`EFSignum`, and
    ``z`` is kept by the owner of each shard: Lion (Chen et al., 2023; distributed: arXiv 2404.00438) at the
    owner. A composition of this project; no theorem is claimed.

    It is not robust to hostile workers: a large scale outvotes the others. Costs as :class:`EFSignum`'s.

    Args:
        params: parameters or groups.
        lr: step of each coordinate, float or one-element tensor, at least 0.
        betas: ``b1`` for the direction and ``b2`` for the average, both weights of the old, in [0, 1).
        weight_decay: decoupled, at least 0.
        maximize: move uphill.
        vote: None for :class:`~lightning_signvr.voting.ScaledMeanVote` with its defaults.

    Raises:
        ValueError, TypeError, RuntimeError: as :class:`EFSignum`.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = EFLion([weight], lr=0.5)
        >>> weight.grad = torch.tensor([3.0, -1.0])
        >>> optimizer.step()
        >>> weight.data
        tensor([-0.5000,  0.5000])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        vote: ScaledMeanVote | None = None,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults, ErrorFeedback(), vote)

    @override
    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        check_betas(group["betas"])

    @override
    def serve(self, mean: Tensor, kept: Tensor, group: dict[str, Any]) -> Tensor:
        direction_weight, average_weight = group["betas"]
        direction: Tensor = kept.mul(direction_weight).add_(mean, alpha=1 - direction_weight)
        kept.mul_(average_weight).add_(mean, alpha=1 - average_weight)
        return direction
