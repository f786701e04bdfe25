"""SSDM: the mean of stochastic signs of each worker's momentum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import override

from lightning_signvr.estimators import Momentum
from lightning_signvr.optimizers.checks import check_fraction
from lightning_signvr.optimizers.stochastic import RandomizedSigns
from lightning_signvr.signs.encoders import dither, magnitudes
from lightning_signvr.voting import MajorityVote, MeanVote


class SSDM(RandomizedSigns):
    """``m <- momentum m + (1 - momentum) g``; ``x <- x - lr * (mean_j s(m^j) + weight_decay * x)``.

    Stochastic sign descent with momentum: Safaryan, Richtarik, "Stochastic Sign Descent Methods: New
    Algorithms and Better Theory" (ICML 2021, arXiv 1905.12938). ``s`` is the stochastic sign with the
    Euclidean norm of the tensor: ``P[s_i = +1] = 1/2 + m_i / (2 ||m||_2)``, and ``s(0) = 0``. Its
    expectation is ``m / ||m||_2``, so that on average a tensor moves by ``lr`` along the workers' mean unit
    directions, whatever its size d. The loop is recalled, not read; in it the server may send the sum of
    the signs: its learning rate is then this one divided by the number of workers.

    **For data that are alike on all workers only.** The published theorem was stated for different data
    too, but its proof needs all workers' gradients to be unbiased for the same one: the authors' correction
    of 2026, arXiv 1905.12938v6. Each worker normalizes by a norm of its own, so that where data differ
    those with small gradients count for more than their share.

    A mean of signs is not a majority: a hostile worker moves every coordinate, by at most ``2 lr / n``.

    Rate, for like data under bounded variance: of optimal order in the l2 norm of the gradient; recalled:
    ``T^{-1/4}`` with ``momentum = 1 - T^{-1/2}`` and ``lr`` proportional to ``T^{-3/4}``, hence small steps
    and a long memory. A single sign is almost a coin (``|m_i| / ||m||_2`` is about ``1 / sqrt(d)``): the
    mean over the workers and the steps has to bring the direction out, which takes many of either for large
    tensors. Try learning rates up to ten times those of :class:`Signum`, and decay them to 0.

    Per parameter: 1 bit up, ``log2(n + 1)`` bits down (rounded up, see
    :class:`~lightning_signvr.voting.MeanVote`), one copy of state (float32 for 16-bit parameters); one
    gradient per step.

    Args:
        params: parameters or groups.
        lr: step of a coordinate on whose sign all workers agree, float or one-element tensor, at least 0.
        momentum: weight of the old average, in [0, 1).
        weight_decay: decoupled, at least 0.
        maximize: move uphill.
        vote: None for :class:`~lightning_signvr.voting.MeanVote` with its defaults; its seed also keys the
            random signs.

    Raises:
        ValueError, TypeError: see :class:`SignOptimizer`.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(3))
        >>> weight.grad = torch.tensor([-5.0, 0.0, 0.0])  # all of the norm: a certain sign
        >>> SSDM([weight], lr=0.5).step()
        >>> weight.data
        tensor([0.5000, 0.0000, 0.0000])
    """

    vote_class: type[MajorityVote] = MeanVote

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        vote: MeanVote | None = None,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults, Momentum(), vote)

    @override
    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        check_fraction("momentum", group["momentum"])

    @override
    def encode(self, direction: Tensor, group: dict[str, Any], index: int) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(magnitudes(direction))
        return dither(direction, self.uniform(direction, index), norm)
