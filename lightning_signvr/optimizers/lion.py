"""Distributed Lion: Lion by majority vote, or with the mean of the workers' signs."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import override

from lightning_signvr.estimators.lion import LionMomentum
from lightning_signvr.optimizers.base import SignOptimizer
from lightning_signvr.optimizers.checks import check_betas
from lightning_signvr.voting import MajorityVote, MeanVote


class Lion(SignOptimizer):
    """``u = b1 m + (1 - b1) g``; ``m <- b2 m + (1 - b2) g``; ``x <- x - lr * (vote(u) + weight_decay * x)``.

    Liu et al., "Communication Efficient Distributed Training with Distributed Lion" (NeurIPS 2024, arXiv
    2404.00438). Each worker's momentum ``m`` is its own and never sent; the direction ``u`` takes the
    momentum of before the step. With one worker this is Lion (Chen et al., "Symbolic Discovery of
    Optimization Algorithms", NeurIPS 2023, arXiv 2302.06675). With equal ``betas`` it is Signum.

    Both of the paper's forms: the majority of the workers' signs (D-Lion MaVo), 1 bit per parameter down,
    or with ``average`` their mean (D-Lion Avg), ``log2(n + 1)`` bits down, rounded up. In the paper the
    mean does better with large global batches, the majority with small ones. A hostile
    minority is outvoted by a majority; in the mean each worker moves every coordinate, by at most ``2 lr /
    n``. From LightningCLI's configuration file::

        optimizer:
          class_path: lightning_signvr.optimizers.Lion
          init_args: {lr: 0.0003, weight_decay: 1.0, average: true}

    Per parameter: 1 bit up, 1 bit or ``log2(n + 1)`` bits down, one copy of state (float32 for 16-bit
    parameters); one gradient per step. The direction of one parameter at a time is in memory besides.

    Each step moves a coordinate by ``lr`` (with the mean: by at most ``lr``): take a third to a tenth of
    AdamW's learning rate and as many times its weight decay, since their product decides how far weights can
    grow (``|x| <= 1 / weight_decay`` in the end). The paper trains ImageNet ViT-S and -B with ``lr`` 3e-4 and
    1e-4 and ``weight_decay`` 1 and 10, GPT-2 350M and 760M with 9e-5 and 1.

    Theory (for data that are alike on all workers): a score that is 0 at the optimality conditions of
    ``min f(x)`` over ``|x| <= 1 / weight_decay`` falls to ``O(1 / (T lr) + 1 / (T (1 - b2)) + lr + 1 /
    sqrt(n))`` with ``n`` workers and the majority; the bound for the mean does not improve with ``n``. Where
    the workers' data differ, both are biased: a majority as Signum's is, a mean of signs because it knows no
    magnitudes.

    Args:
        params: parameters or groups.
        lr: step of each coordinate, float or one-element tensor, at least 0.
        betas: weights of the old average in the direction and in the momentum, each in [0, 1).
        weight_decay: decoupled, at least 0.
        average: take the mean of the workers' signs instead of their majority.
        maximize: move uphill.
        vote: None for :class:`~lightning_signvr.voting.MajorityVote` with its defaults, or with ``average``
            for :class:`~lightning_signvr.voting.MeanVote` with its defaults; a strategy may replace it by
            one with its own rules. ``vote=MeanVote(...)`` alone means ``average`` too.

    Raises:
        ValueError, TypeError: see :class:`SignOptimizer`.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = Lion([weight], lr=0.5, betas=(0.5, 0.9))
        >>> for gradient in ([3.0, -1.0], [-1.0, -1.0]):  # the second one outweighs the average
        ...     weight.grad = torch.tensor(gradient)
        ...     optimizer.step()
        >>> weight.data
        tensor([0., 1.])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        average: bool = False,
        maximize: bool = False,
        vote: MajorityVote | None = None,
    ) -> None:
        if average:
            self.vote_class = MeanVote
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults, LionMomentum(), vote)

    @override
    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        check_betas(group["betas"])
