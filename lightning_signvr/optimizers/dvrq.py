"""DVR-Q: as DVR-Sign, with magnitudes on the way back too."""

from __future__ import annotations

from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_signvr.optimizers.dvr import ScaledSignAnswer
from lightning_signvr.optimizers.dvrsign import DVRSign
from lightning_signvr.voting import ScaledMeanVote


class DVRQ(ScaledSignAnswer, DVRSign):
    """``z <- (1 - beta) z + mean_j Q(h^j)``; ``x <- x - lr * (Q(z) + weight_decay * x)``.

    Jiang, Li, Zhang, "Revisiting Distributed Sign-Based Variance Reduction" (arXiv 2609.18656, section 4).
    The workers send what they do in :class:`DVRSign`, and the owner answers ``Q(z) = rho S`` instead of
    ``sign(z)``: random signs whose mean is the estimate, ``P[S = +1] = (1 + z / rho) / 2``. Its ``rho`` is
    ``max |z|`` over the part of a tensor that lies in the owner's shard, so there is one for each tensor and
    owner; the owner draws the numbers. A lone worker does the same.

    **The learning rate is SGD's**, not that of the other classes here: on average a step is ``lr * z``, and
    it shrinks with the gradient. In each step every coordinate of a part moves by ``lr * rho``, up or down,
    which is noise as large as the largest coordinate's step: expect to need less than SGD does.

    Rate, in the l2 norm, also where the workers' data differ: ``E||grad f||_2 = O(sqrt(a / K) + sqrt(a) /
    (n K)^{1/3})`` after K steps, where ``a`` is the size of the largest tensor, with ``r = (K / n^2)^{1/3}``,
    ``lr = 1 / (2 L a (1 + r))``, ``beta = 1 / (n (1 + r)^2)`` and a first batch of ``1 + r`` samples per
    worker (the paper's theorem for DVR-Q; L is the smoothness). See :meth:`large_first_batch`, which sends
    that batch's gradient once in full precision. Large tensors make ``a`` large, and both scaled signs noisy.
    It is not robust to hostile workers: a large scale outvotes the others.

    Per parameter: 1 bit up and a float32 per tensor, 1 bit down and a float32 per tensor and owner; state:
    one copy (``x_{t-1}``, always kept as it is) and 1/n of a copy (``z``); two gradients per step, given as
    to :class:`AnchoredOptimizer`.

    Args:
        params: parameters or groups.
        lr: SGD's learning rate, float or one-element tensor, at least 0.
        beta, weight_decay, maximize, vote: as for :class:`DVRSign`.

    Raises:
        ValueError, TypeError, RuntimeError: as for :class:`DVRSign`.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = DVRQ([weight], lr=0.25, beta=0.1)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     (weight**2).sum().backward()
        >>> for _ in range(2):
        ...     optimizer.step(closure)
        >>> weight.data  # halved each time: in one dimension the scaled sign loses nothing
        tensor([0.2500])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        beta: float = 0.1,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        vote: ScaledMeanVote | None = None,
    ) -> None:
        super().__init__(params, lr, beta, weight_decay, maximize=maximize, vote=vote)
