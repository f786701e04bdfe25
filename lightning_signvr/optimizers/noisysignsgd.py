"""Noise before the sign: majority vote of noisy signs."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import override

from lightning_signvr.estimators.optional_momentum import OptionalMomentum
from lightning_signvr.optimizers.checks import check_above_zero, check_choice, check_fraction
from lightning_signvr.optimizers.stochastic import RandomizedSigns
from lightning_signvr.signs.encoders import NOISES, Noise, dither, noise_from
from lightning_signvr.voting import MajorityVote


class NoisySignSGD(RandomizedSigns):
    """``x <- x - lr * (vote(sign(m + sigma * xi)) + weight_decay * x)`` with fresh noise ``xi``.

    The sign of z-SignFedAvg: Tang, Wang, Chang, "z-SignFedAvg: A Unified Stochastic Sign-based Compression
    for Federated Learning" (AAAI 2024, arXiv 2302.02589; recalled, not read), here of each step's gradient
    or its average and followed by a vote, where the paper takes the sum of some local steps and the mean of
    the signs. Noise before the sign moves the vote from the median of the workers towards their mean. It is
    Gaussian (``z = 1``) or uniform in [-1, 1) (``z`` infinite).

    ``E[sign(m + sigma * xi)]`` is ``m / sigma`` where ``|m| <= sigma`` with uniform noise, which is
    :class:`StoSignSGD` with ``radius = sigma``; with Gaussian noise it is ``erf(m / (sigma sqrt(2)))``, close
    to ``0.80 m / sigma`` for small ``m`` alone, but no magnitude makes the sign certain. The rate that the
    paper has for the mean of the signs is not known for their vote, which stays biased where the workers'
    data differ, less so the larger ``sigma``.

    Per parameter: 1 bit up, 1 bit down; no state, or one copy with momentum (float32 for 16-bit
    parameters); one gradient per step. A ``sigma`` far above the gradients makes every vote a coin; one
    far below leaves :class:`SignSGD`, or :class:`Signum` with momentum.

    Args:
        params: parameters or groups.
        lr: step of each coordinate, float or one-element tensor, at least 0.
        momentum: weight of the old average, in [0, 1); 0 for the gradient itself.
        sigma: scale of the noise, in units of the gradient, above 0.
        noise: ``"gaussian"`` or ``"uniform"``.
        weight_decay: decoupled, at least 0.
        maximize: move uphill.
        vote: None for :class:`~lightning_signvr.voting.MajorityVote` with its defaults; its seed also
            keys the noise.

    Raises:
        ValueError, TypeError: see :class:`SignOptimizer`.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(1000))
        >>> weight.grad = torch.full_like(weight, 0.6745)  # Gaussian noise is below -0.6745 in 1 of 4 cases
        >>> NoisySignSGD([weight], lr=1.0, sigma=1.0).step()
        >>> round(weight.mean().item(), 1)
        -0.5
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        momentum: float = 0.0,
        sigma: float = 0.01,
        noise: Noise = "gaussian",
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        vote: MajorityVote | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "sigma": sigma,
            "noise": noise,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults, OptionalMomentum(), vote)

    @override
    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        check_fraction("momentum", group["momentum"])
        check_above_zero("sigma", group["sigma"])
        check_choice("noise", group["noise"], NOISES)

    @override
    def encode(self, direction: Tensor, group: dict[str, Any], index: int) -> Tensor:
        if group["noise"] == "uniform":  # under Gaussian noise nothing is clipped
            self.count_clipped(direction, group["sigma"])
        return dither(direction, noise_from(self.uniform(direction, index), group["noise"]), group["sigma"])
