"""Distributed variance reduction by compressed increments: what its four methods share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from typing_extensions import override

from lightning_signvr.optimizers.given_gradient import GivenGradientOptimizer
from lightning_signvr.optimizers.scaled import Answer, ScaledOptimizer
from lightning_signvr.optimizers.stochastic import RandomizedSigns
from lightning_signvr.signs import random_uniform
from lightning_signvr.signs.encoders import dither
from lightning_signvr.voting.rules import SERVER_STREAM


class DVROptimizer(GivenGradientOptimizer, RandomizedSigns, ScaledOptimizer):
    """Workers send unbiased scaled signs of increments; the owner of each shard keeps the estimate ``z``.

    The scaled sign is ``Q(h) = rho S`` with ``rho = max |h|`` over the tensor, ``P[S = +1] = (1 + h / rho) /
    2`` and ``Q(0) = 0`` (arXiv 2609.18656, equation 8). A gradient that was given beforehand goes to the
    owners in full precision, and nothing of it is lost.
    """

    @override
    def encode(self, direction: Tensor, group: dict[str, Any], index: int) -> Tensor:
        largest = direction.abs().max() if direction.numel() else direction.new_zeros(())
        scale = self.send_scale(index, largest)
        return dither(direction, self.uniform(direction, index), scale)  # keeps 0: Q(0) = 0

    @override
    def exact_directions(self, parameters: Sequence[Tensor]) -> Sequence[Tensor | None] | None:
        return [parameter.grad for parameter in parameters] if self._given else None


class ScaledSignAnswer(ScaledOptimizer):
    """An owner that answers with ``Q`` of its estimate.

    ``rho`` is the largest magnitude in the part of the tensor that the owner has, not in all of it: ``Q`` is
    as unbiased, and less noisy. The random numbers are a function of the vote's seed, the step, the tensor
    and the coordinate: they do not depend on the number of workers.
    """

    scaled_answer = True

    @override
    def answer(self, numbers: Answer, index: int, first: int) -> Answer:
        assert isinstance(numbers, Tensor)
        step = self.param_groups[0]["step"]
        key = self.vote.seed, step, SERVER_STREAM, index, numbers.numel()
        noise = random_uniform(*key, device=numbers.device, start=first)
        scale = float(numbers.abs().max())
        return dither(numbers, noise, scale), scale
