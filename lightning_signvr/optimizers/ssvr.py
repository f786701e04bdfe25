"""SSVR: sign-based stochastic variance reduction."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_signvr.estimators import Storm
from lightning_signvr.optimizers.storm import StormOptimizer
from lightning_signvr.voting import MajorityVote


class SSVR(StormOptimizer):
    """``v_t = g_t + (1 - beta) (v_{t-1} - g_t^-)``; ``x <- x - lr * (vote(sign(v_t)) + weight_decay * x)``.

    Jiang, Yang, Yang, Zhang, "Efficient Sign-Based Optimization: Accelerating Convergence via Variance
    Reduction" (NeurIPS 2024, arXiv 2406.00489), as restated in arXiv 2609.18656, section 1 and equation
    10. ``g_t`` and ``g_t^-`` are the gradients of the same samples at ``x_t`` and ``x_{t-1}``. With one
    worker this is SSVR. With several, each keeps its own ``v`` and the deterministic signs are voted on:
    that is SSVR-MV without its randomized signs, and like every vote of deterministic signs it is biased
    where the workers' data differ.

    Rate (one worker): ``E||grad f||_1 = O(d^{1/2} T^{-1/3})`` with ``beta = O(T^{-2/3})``, ``lr =
    O(d^{-1/2} T^{-2/3})`` and a first batch of ``O(T^{1/3})`` samples; the schedule is verified for the
    identical estimator in a sister paper and recalled, not read, for SSVR itself. An ordinary first batch
    works in practice; :meth:`large_first_batch` takes a larger one.

    Per parameter: 1 bit up, 1 bit down; two copies of state (``v`` in float32 for 16-bit parameters, and
    ``x_{t-1}``); two gradients per step. See :class:`AnchoredOptimizer` for the ways to give the second.

    Args:
        params: parameters or groups.
        lr: step of each coordinate, float or one-element tensor, at least 0.
        beta: weight of the fresh gradient, in (0, 1]. 1 is signSGD.
        correction: scale of the variance reduction, in [0, 1]: 1 is SSVR, 0 is Signum with momentum ``1 -
            beta``; values between (0.025 in MARS, arXiv 2411.10438) have been reported to help deep networks.
        correction_steps: number of steps in which ``correction`` falls linearly to 0; None for constant.
        previous: ``"exact"``: the same samples at ``x_{t-1}``. ``"last_batch"``: the gradient that the last
            step computed, on other samples: one evaluation per step and no ``x_{t-1}``, but no longer SSVR,
            since the noises do not cancel; only for a small ``correction``.
        weight_decay: decoupled, at least 0.
        previous_iterate: how ``x_{t-1}`` is kept. ``"copy"``: as it is. ``"rebuild"``: as the last vote, 1
            bit per parameter, from which it is computed when needed, but for rounding; in 16-bit parameters
            that is as much as a step, so use it for float32.
        maximize: move uphill.
        vote: None for :class:`~lightning_signvr.voting.MajorityVote` with its defaults.

    Raises:
        ValueError, TypeError: see :class:`SignOptimizer`.
        RuntimeError: in ``step()``: the second gradient is missing.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
        >>> optimizer = SSVR([weight], lr=0.5, beta=0.1)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = (weight**2).sum()
        ...     loss.backward()
        ...     return loss
        >>> for _ in range(2):
        ...     loss = optimizer.step(closure)
        >>> weight.data
        tensor([0., 0.])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        beta: float = 0.1,
        correction: float = 1.0,
        correction_steps: int | None = None,
        previous: Literal["exact", "last_batch"] = "exact",
        weight_decay: float = 0.0,
        *,
        previous_iterate: Literal["copy", "rebuild"] = "copy",
        maximize: bool = False,
        vote: MajorityVote | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "beta": beta,
            "correction": correction,
            "correction_steps": correction_steps,
            "previous": previous,
            "weight_decay": weight_decay,
            "previous_iterate": previous_iterate,
            "maximize": maximize,
        }
        super().__init__(params, defaults, Storm(), vote)
