"""MARS-Lion: signs of an average of tempered variance-reduced gradients."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import override

from lightning_signvr.estimators.mars import Mars
from lightning_signvr.optimizers.anchored import AnchoredOptimizer
from lightning_signvr.optimizers.checks import check_choice, check_fraction, check_weight
from lightning_signvr.voting import MajorityVote


class MARSLion(AnchoredOptimizer):
    """``m <- b m + (1 - b) clip(g + correction b / (1 - b) (g - g^-))``, where ``b`` is ``momentum``.

    Then ``x <- x - lr * (vote(sign(m)) + weight_decay * x)``.

    Yuan et al., "MARS: Unleashing the Power of Variance Reduction for Training Large Models" (ICML 2025,
    arXiv 2411.10438), in its variant with Lion's update. ``g`` and ``g^-`` are the gradients of the same
    samples at ``x_t`` and ``x_{t-1}``; ``clip`` divides a tensor by its Euclidean norm where that is above
    1. With several workers each keeps its own ``m`` and the signs are voted on, which the paper does not
    do: as with every vote of deterministic signs, expect a bias where the workers' data differ.

    With ``correction=1`` and ``clip=False`` the recursion is SSVR's with ``beta = 1 - momentum``: ``m <- b m
    + (1 - b) g + b (g - g^-)``. Only the start differs, where SSVR takes ``v_1 = g_1``, and MARS begins
    with ``m_0 = 0``, hence ``m_1 = (1 - b) g_1``. The first step has no ``g^-`` and no correction; the
    authors' code takes ``g^- = 0`` there, so that its ``c_1`` is a multiple of ``g_1`` (of the same signs).

    No rate for this variant was found; the paper's comparisons are of MARS with AdamW's update: GPT-2
    small reaches a loss of 2.847 with ``"exact"`` and 2.849 with ``"last_batch"``, AdamW 2.885.

    Per parameter: 1 bit up, 1 bit down; two copies of state (``m`` in float32 for 16-bit parameters, and
    ``x_{t-1}`` or the last gradient); with ``"exact"`` two gradients per step, see
    :class:`AnchoredOptimizer` for the ways to give the second, with ``"last_batch"`` one.

    Each step moves a coordinate by ``lr``: start from Lion's or Adam's learning rate and decay it. The
    paper's 3e-3 to 6e-3 was tuned for AdamW's update and does not carry over.

    Args:
        params: parameters or groups.
        lr: step of each coordinate, float or one-element tensor, at least 0.
        momentum: weight ``b`` of the old average, in [0, 1).
        correction: scale of the variance reduction, in [0, 1]; 0 is Signum of clipped gradients.
        previous: ``"exact"``: the same samples at ``x_{t-1}``. ``"last_batch"``: the gradient that the last
            step computed, on other samples: one evaluation per step and no ``x_{t-1}``. The noises do not
            cancel then; only for a small ``correction``.
        clip: whether each parameter's ``c`` is scaled down to a norm of at most 1. It does not change the
            signs of ``c``, but how much this step counts in the average.
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
        >>> optimizer = MARSLion([weight], lr=0.5)
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
        momentum: float = 0.95,
        correction: float = 0.025,
        previous: Literal["exact", "last_batch"] = "exact",
        clip: bool = True,
        weight_decay: float = 0.0,
        *,
        previous_iterate: Literal["copy", "rebuild"] = "copy",
        maximize: bool = False,
        vote: MajorityVote | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "correction": correction,
            "previous": previous,
            "clip": clip,
            "weight_decay": weight_decay,
            "previous_iterate": previous_iterate,
            "maximize": maximize,
        }
        super().__init__(params, defaults, Mars(), vote)

    @override
    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        check_fraction("momentum", group["momentum"])
        check_weight("correction", group["correction"])
        check_choice("previous", group["previous"], ("exact", "last_batch"))
        if not isinstance(group["clip"], bool):
            raise TypeError(f"clip must be True or False, got {group['clip']!r}")

    @override
    def needs(self, name: str, group: dict[str, Any]) -> bool:
        return bool(group["previous"] == "exact" and group["correction"] > 0 and group["momentum"] > 0)
