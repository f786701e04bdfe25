"""Sto-signSGD: majority vote of stochastic signs with a fixed bound."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import override

from lightning_signvr.estimators.optional_momentum import OptionalMomentum
from lightning_signvr.optimizers.checks import check_fraction
from lightning_signvr.optimizers.stochastic import StochasticSigns
from lightning_signvr.signs.encoders import RadiusPolicy
from lightning_signvr.voting import MajorityVote


class StoSignSGD(StochasticSigns):
    """``x <- x - lr * (vote(s) + weight_decay * x)`` with ``P[s = +1] = (b + g) / (2 b)``, ``b`` a bound.

    Jin, Huang, He, Dai, Wu, "Stochastic-Sign SGD for Federated Learning with Theoretical Guarantees"
    (2020, arXiv 2002.10940); the formula is recalled, not read. Where ``|g| > b`` the sign is certain. With
    ``momentum`` above 0 the average of the gradients takes the place of ``g``: MV-sto-signSGD-SIM of Sun,
    Wang, Li, Wang, "Momentum Ensures Convergence of SIGNSGD under Weaker Assumptions" (ICML 2023; its update
    is recalled too). With ``momentum`` and the policy ``"running"`` it is the method of the same name of
    arXiv 2604.15416, except that a coordinate of exactly 0 stays where that one tosses a coin.

    Rates on skewed data, as the abstract of arXiv 2406.00489 compares them (it names no norm): ``O(d^{3/8}
    T^{-1/8})`` without momentum; ``O(d T^{-1/4} + d n^{-1/2})`` with it, whose second term is a floor that
    more steps do not lower.

    Per parameter: 1 bit up, 1 bit down; no state, or one copy with momentum (float32 for 16-bit
    parameters), and one more with the policy ``"running"``; one gradient per step. ``b`` should be the
    largest ``|g|`` that matters: much larger, and every vote is a coin; much smaller, and this is
    :class:`SignSGD`. ``counts_clipping = True`` and ``clip_fraction`` tell how many coordinates are beyond.
    Without such a bound, ``"max"`` and ``"rms"`` follow the gradients (or their averages) of all workers.

    Args:
        params: parameters or groups.
        lr: step of each coordinate, float or one-element tensor, at least 0.
        momentum: weight of the old average, in [0, 1); 0 for none.
        radius: ``b``, or the number that sets it, above 0. Public code that writes ``P[+1] = 1/2 + g / b``
            has the double in its place.
        radius_policy: ``"fixed"`` (the papers'), or ``"max"``, ``"rms"``, ``"running"``: see :class:`SSVRMV`.
        weight_decay: decoupled, at least 0.
        shared_radius: whether ``"max"`` and ``"rms"`` are of all workers' last step: see :class:`SSVRMV`,
            also for what a broken or hostile worker can do to it.
        maximize: move uphill.
        vote: None for :class:`~lightning_signvr.voting.MajorityVote` with its defaults; its seed also
            keys the random signs.

    Raises:
        ValueError, TypeError: see :class:`SignOptimizer`.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(1000))
        >>> weight.grad = torch.full_like(weight, 0.25)
        >>> StoSignSGD([weight], lr=1.0, radius=0.5).step()  # 3 of 4 coordinates move down
        >>> round(weight.mean().item(), 1)
        -0.5
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        momentum: float = 0.0,
        radius: float = 0.01,
        radius_policy: RadiusPolicy = "fixed",
        weight_decay: float = 0.0,
        *,
        shared_radius: bool | None = None,
        maximize: bool = False,
        vote: MajorityVote | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "radius": radius,
            "radius_policy": radius_policy,
            "shared_radius": shared_radius,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults, OptionalMomentum(), vote)

    @override
    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        check_fraction("momentum", group["momentum"])
