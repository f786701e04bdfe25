"""SSVR-MV: variance reduction by majority vote of randomized signs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import override

from lightning_signvr.estimators import Storm
from lightning_signvr.optimizers.stochastic import StochasticSigns
from lightning_signvr.optimizers.storm import StormOptimizer
from lightning_signvr.signs.encoders import RadiusPolicy, magnitudes
from lightning_signvr.voting import MajorityVote, StochasticVote
from lightning_signvr.voting.nonfinite import NOT_FINITE, MaybeDirection


class SSVRMV(StochasticSigns, StormOptimizer):
    """``v_t = g_t + (1 - beta) (v_{t-1} - g_t^-)``; ``x <- x - lr * (vote(S_R(v_t)) + weight_decay * x)``.

    SSVR-MV: Jiang, Yang, Yang, Zhang, "Efficient Sign-Based Optimization: Accelerating Convergence via
    Variance Reduction" (NeurIPS 2024, arXiv 2406.00489), as restated in arXiv 2609.18656, section 1 and
    equations 10 to 12. Each worker keeps its own variance-reduced ``v`` and votes with its stochastic sign,
    ``P[S_R(v) = +1] = (1 + v / R) / 2``. Magnitudes thus reach the vote on average: where the workers' data
    differ it follows their mean more than their median, which is what votes of deterministic signs
    (:class:`SSVR`) compare with 0.

    **Option 1**: the majority decides. Rate on skewed data, in l1: ``O(d^{1/2} T^{-1/2} + d n^{-1/2})`` for
    ``|g| <= G``, with ``beta = 1/2``, ``lr = O((d T)^{-1/2})``, ``radius = 4 G`` and the policy ``"fixed"``
    (arXiv 2609.18656, theorem 3; then ``|v| <= 3 G``, so that nothing is clipped; for any beta ``(2 - beta)
    / beta * G`` suffices). The second term is a floor that more steps do not lower: the majority of
    randomized signs is itself biased (proposition 1 of the same paper).

    A coordinate much smaller than the radius votes almost like a coin: with few workers a large radius
    learns slowly, and a small one (towards 0: the deterministic vote) is biased. The policies that follow
    the directions need no ``G``; ``"max"`` and ``"rms"`` share one radius per tensor among all workers, or
    the votes of one whose gradients are small would count for more than its share. It follows the directions
    one step late. ``counts_clipping = True`` and ``clip_fraction`` tell how many coordinates are beyond the
    radius.

    **Option 2**: a randomized outcome of randomized signs. Each worker's whole direction, all parameters
    together, is first projected onto the Euclidean ball of radius ``G = radius`` (and so carried on in the
    recursion: recalled, not read), then voted with by ``S_G``; the outcome is ``S_1`` of the mean of the
    signs, a :class:`~lightning_signvr.voting.StochasticVote`. Nothing is clipped and the step is unbiased:
    on average it is ``-(lr / G) mean_j v^j``. So ``lr`` must be about ``G`` times a learning rate of SGD.
    Rate: ``O(d^{1/4} T^{-1/4})`` in l2 (*not* in l1), with ``beta = O(T^{-1/2})``, ``lr = O((d T)^{-1/2})``.
    The price is noise: ``G`` bounds a norm over all d coordinates, so that one coordinate's vote is nearly a
    coin, +1 with probability ``(1 + v_k / G) / 2`` where ``v_k / G`` is about ``1 / sqrt(d)``, and every
    coordinate moves by ``lr`` in every step all the same. It is of use where d is small (tens) and a bias is
    worse than noise; it trains no network in a usual number of steps. Between the two is option 1 with
    ``vote=StochasticVote()`` and a shared radius: unbiased as well where nothing is clipped, and the radius
    is as large as one coordinate of a tensor, not as the whole.

    Per parameter: 1 bit up, 1 bit down (``"max"`` and ``"rms"``: and a float32 per tensor to each other
    worker); two copies of state (``v`` in float32 for 16-bit parameters, and ``x_{t-1}``), three with the
    policy ``"running"``; two gradients per step. See :class:`AnchoredOptimizer` for the ways to give the
    second.

    Args:
        params: parameters or groups.
        lr: step of each coordinate, float or one-element tensor, at least 0.
        beta: weight of the fresh gradient, in (0, 1].
        radius: number that sets the radius, above 0. With ``option=2`` the same in all groups.
        radius_policy: ``"fixed"``: R is ``radius``, on all workers; needed with ``option=2``. Per tensor:
            ``"max"``: ``radius * max |v|``; ``"rms"``: ``radius * sqrt(mean v^2)``. Per coordinate and
            worker: ``"running"``: ``radius`` times the largest ``|v|`` so far.
        correction: scale of the variance reduction, in [0, 1]. With 0, the momentum methods of arXiv
            2507.12091 (version 1: option 1, version 2: option 2): one gradient per step and no ``x_{t-1}``.
        correction_steps, previous: as in :class:`SSVR`.
        weight_decay: decoupled, at least 0.
        option: 1 or 2, see above.
        shared_radius: for ``"max"`` and ``"rms"``: whether R is made of the last step's ``v`` of all workers
            (the largest maximum, or the root of their mean squares' mean; a worker that had no gradient or
            only zeros is left out), or of the worker's own ``v`` of this step. Each worker's number travels
            in the vote's header. Until a first step has told them, each has its own, which is biased. A lone
            worker always takes its own. None: True where the policy allows it. Of three workers or more, a
            number counts as 4 times their median at most: a broken minority can make the radius 4 times as
            large as an honest one, not more, and the votes that much noisier. That is still not robust to
            *hostile* workers: their own votes are certain, and beside votes that are almost coins few of them
            decide. False is the choice where workers may be hostile.
        previous_iterate: how ``x_{t-1}`` is kept. ``"copy"``: as it is. ``"rebuild"``: as the last vote, 1
            bit per parameter, from which it is computed when needed, but for rounding; in 16-bit parameters
            that is as much as a step, so use it for float32.
        maximize: move uphill.
        vote: None for :class:`~lightning_signvr.voting.MajorityVote` with its defaults, with ``option=2`` for
            :class:`~lightning_signvr.voting.StochasticVote` with its defaults; its seed also keys the random
            signs.

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
        >>> SSVRMV([weight], radius=8.0, radius_policy="fixed", option=2).vote
        StochasticVote(ties='random', zeros='abstain', seed=0)
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
        option: Literal[1, 2] = 1,
        shared_radius: bool | None = None,
        previous_iterate: Literal["copy", "rebuild"] = "copy",
        maximize: bool = False,
        vote: MajorityVote | None = None,
    ) -> None:
        if option not in (1, 2):
            raise ValueError(f"option must be 1 or 2, got {option!r}")
        self.option = option
        if option == 2:
            self.vote_class = StochasticVote
        defaults = {
            "lr": lr,
            "beta": beta,
            "radius": radius,
            "radius_policy": radius_policy,
            "shared_radius": shared_radius,
            "correction": correction,
            "correction_steps": correction_steps,
            "previous": previous,
            "weight_decay": weight_decay,
            "previous_iterate": previous_iterate,
            "maximize": maximize,
        }
        super().__init__(params, defaults, Storm(), vote)

    @override
    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        if self.option == 1:
            return
        if group["radius_policy"] != "fixed":
            raise ValueError(
                'radius_policy must be "fixed" with option=2, whose radius is that of a ball onto which the '
                f"directions are projected, got {group['radius_policy']!r}"
            )
        if group["radius"] != self.param_groups[0]["radius"]:
            raise ValueError(
                "radius must be the same in all groups with option=2, of a ball for all parameters together, "
                f"got {group['radius']} after {self.param_groups[0]['radius']}"
            )

    @override
    def directions(
        self, parameters: Sequence[Tensor], groups: Sequence[dict[str, Any]]
    ) -> Iterator[MaybeDirection]:
        if self.option == 1:
            yield from super().directions(parameters, groups)
            return
        usable = [parameter.grad is not None and self.is_finite(parameter) for parameter in parameters]
        estimates = [  # all of them before the first is encoded: they are projected together
            self.estimate(parameter, group) if has_direction else None
            for parameter, group, has_direction in zip(parameters, groups, usable, strict=True)
        ]
        known = [estimate for estimate in estimates if estimate is not None]
        _project_(known, self.param_groups[0]["radius"])
        for index, (estimate, parameter, group) in enumerate(zip(estimates, parameters, groups, strict=True)):
            if estimate is None:
                yield None if parameter.grad is None else NOT_FINITE
            else:
                self.show(parameter, estimate)
                yield self.encode(estimate, group, index)

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "option": self.option}


def _project_(tensors: Sequence[Tensor], radius: float) -> None:
    """Onto the Euclidean ball, as one vector and in place; its norm leaves out what is infinite or NaN."""
    norms = [torch.linalg.vector_norm(magnitudes(tensor), dtype=torch.float64) for tensor in tensors]
    norm = float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
    if norm > radius:
        for tensor in tensors:
            tensor.mul_(radius / norm)
