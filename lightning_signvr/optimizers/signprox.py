"""SignProx: the sign of the proximal gradient mapping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import override

from lightning_signvr.estimators import RawGradient
from lightning_signvr.optimizers.checks import check_above_zero, check_count
from lightning_signvr.optimizers.regularized import RegularizedOptimizer
from lightning_signvr.proximal import Regularizer
from lightning_signvr.proximal.base import working_dtype
from lightning_signvr.signs import random_bytes
from lightning_signvr.voting import MajorityVote
from lightning_signvr.voting.rules import component_stream


class SignProx(RegularizedOptimizer):
    """``x <- x - lr * vote(sign(x - P(x)))`` with ``P(x) = mean over b of prox(x - prox_step * g, r_{k_b})``.

    Xu, Kamilov, "SignProx: One-bit Proximal Algorithm for Nonconvex Stochastic Optimization" (ICASSP 2019,
    arXiv 1807.08023), for a loss ``d`` with gradient ``g`` and a regularizer ``r`` that is the mean of
    ``components``, of which ``k_1 ... k_B`` are drawn with replacement, all alike likely. The paper has
    ``prox_step = lr`` and one worker. With several, each forms the mapping from its own gradient and
    components, and the majority of the signs moves all alike, as in :class:`SignSGD`; without a
    regularizer this is :class:`SignSGD`.

    Where the mapping is exactly 0, nothing moves: with l1, a coordinate that is 0 stays 0 while ``|g| <=
    strength``. Hence workers abstain at zeros, and a vote with another rule for them is refused. With exact
    gradients and all components the points that stay are those with ``x = P(x)``: the stationary points
    of ``d + r`` where ``r`` is one component; where it is several, these up to a bias that shrinks with
    ``prox_step``.

    Rate: the abstract of the paper states that of the uncompressed method, under assumptions that it does
    not list; its theorem was not available to us. As for all signs of noisy values, the mean of the signs
    is not the sign of the mean. **With few components per step the method settles elsewhere**: with one
    pair of neighbours at a time, total variation moves a pixel by how many neighbours are brighter, not by
    how much, and hardly by the data. Take all of them (the default) where they are cheap.

    The workers draw different components: the noise of the draw is then independent between them, as that
    of their gradients, and the majority reduces both. Numbers depend on the vote's seed, the step, the
    worker and the group alone. (Under :class:`~lightning_signvr.voting.LocalVote` all ranks draw the same,
    which keeps replicas alike.)

    Per parameter: 1 bit up, 1 bit down (and what changes of the zeros, at most 1 bit more each way), no
    state; one gradient per step and one proximal operator per component. The mapping is a small difference
    and is computed in float64. Each step moves a coordinate by ``lr``, so iterates oscillate within it:
    decay it to near 0, and ``prox_step`` with it. What the regularizer makes exact (zeros, bounds, flat
    regions) holds to within ``lr`` until then: call :meth:`clean_up` at the end. Like :class:`SignSGD`, it
    follows the workers' median, not their mean.

    Args:
        params: parameters or groups; a group may have a ``regularizer`` of its own.
        lr: step of each coordinate, float or one-element tensor, at least 0.
        regularizer: see :mod:`lightning_signvr.proximal`; None for none.
        prox_step: step of the gradient and the proximal operator within the mapping, above 0; None for
            ``lr``, whatever a scheduler makes of it. Nothing moves where that is 0.
        components_per_step: ``B``, at least 1; None for each component once.
        weight_decay: decoupled, at least 0. :class:`~lightning_signvr.proximal.SquaredL2` is the one that
            is a part of the objective.
        maximize: move uphill in ``d`` and downhill in ``r``.
        vote: None for :class:`~lightning_signvr.voting.MajorityVote` with its defaults; its seed also
            keys the components.

    Raises:
        ValueError: also a vote whose ``zeros`` are not ``"abstain"``; else see :class:`SignOptimizer`.
        TypeError: also a regularizer that is none.

    Example:
        >>> from lightning_signvr.proximal import L1
        >>> weight = torch.nn.Parameter(torch.tensor([0.0, 0.0, 2.0]))
        >>> optimizer = SignProx([weight], lr=0.5, regularizer=L1(1.0))
        >>> weight.grad = torch.tensor([0.75, -3.0, 0.25])
        >>> optimizer.step()  # the first gradient is too small to leave 0
        >>> weight.data
        tensor([0.0000, 0.5000, 1.5000])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        regularizer: Regularizer | None = None,
        prox_step: float | None = None,
        components_per_step: int | None = None,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        vote: MajorityVote | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "prox_step": prox_step,
            "components_per_step": components_per_step,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, regularizer, defaults, RawGradient(), vote)

    @property
    def vote(self) -> MajorityVote:
        """What decides; refused where a zero would not abstain."""
        vote: MajorityVote = self.__dict__["vote"]
        return vote

    @vote.setter
    def vote(self, vote: MajorityVote) -> None:
        if vote.zeros != "abstain":
            raise ValueError(
                f"zeros must be 'abstain' for SignProx, got {vote.zeros!r}: a mapping of exactly 0 means "
                "that the coordinate is where it belongs (with l1, at 0), and any vote would move it away"
            )
        self.__dict__["vote"] = vote

    @override
    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        if group["prox_step"] is not None:
            check_above_zero("prox_step", group["prox_step"])
        if group["components_per_step"] is not None:
            check_count("components_per_step", group["components_per_step"])

    @override
    def prox_step(self, group: dict[str, Any]) -> float:
        return super().prox_step(group) if group["prox_step"] is None else float(group["prox_step"])

    @override
    def estimate(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """``x - P(x)``, or its negative to maximize, up to a positive factor."""
        gradient = super().estimate(parameter, group)
        regularizer, step = self.regularizer_of(group), self.prox_step(group)
        if regularizer is None:
            return gradient
        if step <= 0:
            return torch.zeros_like(gradient)
        chosen = self._components(regularizer, group)
        if group["maximize"]:
            return gradient_mapping(parameter, -gradient, step, chosen).neg_()
        return gradient_mapping(parameter, gradient, step, chosen)

    def _components(self, regularizer: Regularizer, group: dict[str, Any]) -> list[tuple[Regularizer, int]]:
        """This step's components, each with how often it counts."""
        components = regularizer.components
        draws = group["components_per_step"]
        if draws is None or len(components) == 1:
            return [(component, 1) for component in components]
        seed, stream = self.vote.seed, component_stream(self.vote.rank)
        step = self.param_groups[0]["step"]
        number = next(number for number, own in enumerate(self.param_groups) if own is group)
        counts = draw_components(len(components), draws, seed, step, stream, number)
        return [(each, count) for each, count in zip(components, counts, strict=True) if count]


def gradient_mapping(
    x: Tensor, gradient: Tensor, step: float, components: Sequence[tuple[Regularizer, int]]
) -> Tensor:
    """Sum of ``count * (x - prox(x - step * gradient, step))`` over ``(component, count)`` pairs.

    Differences are taken one component at a time, so that one of 0 is exactly 0. Where a proximal operator
    changes nothing, the difference is ``step * gradient`` itself, not what rounding leaves of it next to
    ``x``.

    Example:
        >>> from lightning_signvr.proximal import L1
        >>> gradient_mapping(torch.tensor([0.0, 2.0]), torch.tensor([0.75, 0.25]), 0.5, [(L1(1.0), 1)])
        tensor([0.0000, 0.6250])
    """
    accurate = torch.float32 if x.device.type == "mps" else torch.float64  # MPS has no float64
    point = x.detach().to(accurate)
    move = gradient.to(accurate) * step
    moved = point - move
    total = torch.zeros_like(point)
    for component, count in components:
        result = component.prox(moved, step)
        total.add_(torch.where(result == moved, move, point - result), alpha=count)
    return total.to(working_dtype(x.dtype))


def draw_components(components: int, draws: int, seed: int, step: int, stream: int, group: int) -> list[int]:
    """How often each of ``components`` occurs in ``draws`` uniform draws with replacement.

    Example:
        >>> sum(draw_components(4, draws=10, seed=0, step=7, stream=1, group=0))
        10
    """
    size = 8 * draws
    words = random_bytes(seed, step, stream, group * size, (group + 1) * size).clone().view(torch.int64)
    return torch.bincount(words.remainder(components), minlength=components).tolist()
