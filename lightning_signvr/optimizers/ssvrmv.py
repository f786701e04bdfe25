"""SSVR-MV: variance reduction by majority vote of randomized signs."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_signvr.estimators import Storm
from lightning_signvr.optimizers.stochastic import StochasticSigns
from lightning_signvr.optimizers.storm import StormOptimizer
from lightning_signvr.signs.encoders import RadiusPolicy
from lightning_signvr.voting import MajorityVote


class SSVRMV(StochasticSigns, StormOptimizer):
    """``v_t = g_t + (1 - beta) (v_{t-1} - g_t^-)``; ``x <- x - lr * (vote(S_R(v_t)) + weight_decay * x)``.

    Option 1 of SSVR-MV: Jiang, Yang, Yang, Zhang, "Efficient Sign-Based Optimization: Accelerating
    Convergence via Variance Reduction" (NeurIPS 2024, arXiv 2406.00489), as restated in arXiv 2609.18656,
    equations 10 to 12. Each worker keeps its own variance-reduced ``v`` and votes with its stochastic sign,
    ``P[S_R(v) = +1] = (1 + v / R) / 2``; the majority decides. Magnitudes thus reach the vote on average:
    where the workers' data differ it follows their mean more than their median, which is what votes of
    deterministic signs (:class:`SSVR`) compare with 0.

    Rate on skewed data, in l1: ``O(d^{1/2} T^{-1/2} + d n^{-1/2})`` for ``|g| <= G``, with ``beta = 1/2``,
    ``lr = O((d T)^{-1/2})``, ``radius = 4 G`` and the policy ``"fixed"`` (arXiv 2609.18656, theorem 3; then
    ``|v| <= 3 G``, so that nothing is clipped; for any beta ``(2 - beta) / beta * G`` suffices). The second
    term is a floor that more steps do not lower: the majority of randomized signs is itself biased
    (proposition 1 of the same paper). Option 2, with a randomized outcome, is not offered.

    A coordinate much smaller than the radius votes almost like a coin: with few workers a large radius
    learns slowly, and a small one (towards 0: the deterministic vote) is biased. The policies that follow
    the directions need no ``G``, but give each worker a radius of its own, so that the votes of one whose
    gradients are small count for more than its share. ``counts_clipping = True`` and ``clip_fraction`` tell
    how many coordinates are beyond the radius.

    Per parameter: 1 bit up, 1 bit down; two copies of state (``v`` in float32 for 16-bit parameters, and
    ``x_{t-1}``), three with the policy ``"running"``; two gradients per step. See
    :class:`AnchoredOptimizer` for the ways to give the second.

    Args:
        params: parameters or groups.
        lr: step of each coordinate, float or one-element tensor, at least 0.
        beta: weight of the fresh gradient, in (0, 1].
        radius: number that sets the radius, above 0.
        radius_policy: ``"fixed"``: R is ``radius``, on all workers. Per tensor and worker: ``"max"``:
            ``radius * max |v|``; ``"rms"``: ``radius * sqrt(mean v^2)``. Per coordinate and worker:
            ``"running"``: ``radius`` times the largest ``|v|`` so far.
        correction: scale of the variance reduction, in [0, 1]. With 0, the momentum method of arXiv
            2507.12091, version 1: one gradient per step and no ``x_{t-1}``.
        correction_steps, previous: as in :class:`SSVR`.
        weight_decay: decoupled, at least 0.
        maximize: move uphill.
        vote: None for :class:`~lightning_signvr.voting.MajorityVote` with its defaults; its seed also
            keys the random signs.

    Raises:
        ValueError, TypeError: see :class:`SignOptimizer`.
        RuntimeError: in ``step()``: the second gradient is missing.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
        >>> optimizer = SSVRMV([weight], lr=1 / 64, radius=8.0, radius_policy="fixed")
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = (weight**2).sum()
        ...     loss.backward()
        ...     return loss
        >>> for _ in range(1000):
        ...     loss = optimizer.step(closure)
        >>> bool(loss < 0.5)
        True
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        beta: float = 0.5,
        radius: float = 1.0,
        radius_policy: RadiusPolicy = "max",
        correction: float = 1.0,
        correction_steps: int | None = None,
        previous: Literal["exact", "last_batch"] = "exact",
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        vote: MajorityVote | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "beta": beta,
            "radius": radius,
            "radius_policy": radius_policy,
            "correction": correction,
            "correction_steps": correction_steps,
            "previous": previous,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults, Storm(), vote)
