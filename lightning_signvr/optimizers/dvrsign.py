"""DVR-Sign: workers send randomized signs of increments, owners keep the estimate."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import override

from lightning_signvr.estimators import Increment
from lightning_signvr.optimizers.checks import check_weight
from lightning_signvr.optimizers.dvr import DVROptimizer
from lightning_signvr.optimizers.first_batch import FirstBatchOptimizer
from lightning_signvr.voting import ScaledMeanVote


class DVRSign(FirstBatchOptimizer, DVROptimizer):
    """``z <- (1 - beta) z + mean_j Q(h^j)``; ``x <- x - lr * (sign(z) + weight_decay * x)``.

    Jiang, Li, Zhang, "Revisiting Distributed Sign-Based Variance Reduction" (arXiv 2609.18656, section 4).
    Worker j sends the increment ``h^j = g^j - (1 - beta) g^{j-}`` (the first time ``g^j``), where ``g``
    and ``g^-`` are the gradients of the same samples at ``x_t`` and ``x_{t-1}``, through the unbiased
    scaled sign ``Q(h) = rho S`` with ``rho = ||h||_inf`` per tensor and ``P[S = +1] = (1 + h / rho) / 2``
    (equation 8). The owner of each shard keeps the estimate ``z``.

    Rate, also where the workers' data differ, with no error floor: ``E||grad f||_1 = O(sqrt(d / K) +
    sqrt(d) (a / (n K))^{1/3})`` after K steps, where ``a`` is the size of the largest tensor, with ``u = 1 /
    (K^{1/2} + c^{1/3} K^{2/3})``, ``c = a / n``, ``beta = u``, ``lr = H u / (L sqrt(d))`` and a first batch
    of ``1 / (u^2 K)`` samples per worker (theorem 2; H bounds the gradients, L is the smoothness). In the
    paper each sample of the first batch is compressed by itself; :meth:`large_first_batch` sends their mean
    once in full precision: 32 bits per parameter, no more than the paper's messages where there are 32
    samples or more, and no error of compression. Without it, the first batch is an ordinary one, compressed
    as the later ones.

    Large tensors make ``a`` large, and the estimate noisy. It is not robust to hostile workers: a large scale
    outvotes the others.

    Per parameter: 1 bit up and a float32 per tensor, 1 bit down; state: one copy (``x_{t-1}``) and 1/n of a
    copy (``z``); two gradients per step, given as to :class:`AnchoredOptimizer`.

    Args:
        params: parameters or groups.
        lr: step of each coordinate, float or one-element tensor, at least 0.
        beta: weight of the fresh gradient, in (0, 1].
        weight_decay: decoupled, at least 0.
        previous_iterate: how ``x_{t-1}`` is kept. ``"copy"``: as it is. ``"rebuild"``: as the last vote, 1
            bit per parameter, from which it is computed when needed, but for rounding; in 16-bit parameters
            that is as much as a step, so use it for float32.
        maximize: move uphill.
        vote: None for :class:`~lightning_signvr.voting.ScaledMeanVote` with its defaults.

    Raises:
        ValueError, TypeError: see :class:`SignOptimizer`.
        RuntimeError: in ``step()``: the second gradient is missing, a gradient is not finite, or the state is
            of other workers.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = DVRSign([weight], lr=0.5, beta=0.1)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     (weight**2).sum().backward()
        >>> for _ in range(2):
        ...     optimizer.step(closure)
        >>> weight.data  # in one dimension the scaled sign loses nothing
        tensor([0.])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        beta: float = 0.1,
        weight_decay: float = 0.0,
        *,
        previous_iterate: Literal["copy", "rebuild"] = "copy",
        maximize: bool = False,
        vote: ScaledMeanVote | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "beta": beta,
            "weight_decay": weight_decay,
            "previous_iterate": previous_iterate,
            "maximize": maximize,
        }
        super().__init__(params, defaults, Increment(), vote)

    @override
    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        check_weight("beta", group["beta"], zero=False)

    @override
    def needs(self, name: str, group: dict[str, Any]) -> bool:
        return bool(group["beta"] < 1)

    @override
    def serve(self, mean: Tensor, kept: Tensor, group: dict[str, Any]) -> Tensor:
        return kept.mul_(1 - group["beta"]).add_(mean)
