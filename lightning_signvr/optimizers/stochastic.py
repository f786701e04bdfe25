"""Optimizers whose workers draw their signs at random."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_signvr.optimizers.base import SignOptimizer
from lightning_signvr.optimizers.checks import check_above_zero, check_choice
from lightning_signvr.signs import random_uniform
from lightning_signvr.signs.encoders import RADIUS_POLICIES, clipped, dither, radius_of
from lightning_signvr.voting.rules import encoder_stream


class RandomizedSigns(SignOptimizer):
    """A sign optimizer that encodes with random numbers.

    They are a function of the vote's seed, the step, the worker and the tensor: a resumed run draws what
    an uninterrupted one would, and no two workers draw the same. (Under
    :class:`~lightning_signvr.voting.LocalVote` all ranks do, which keeps replicas alike.)

    Attributes:
        counts_clipping: whether steps count the coordinates whose magnitude is beyond the range in which
            the sign is unbiased. Off by default: it costs one more pass over each direction.
    """

    counts_clipping: bool = False
    _clipped: Tensor | None = None
    _encoded: int = 0  # coordinates among which `_clipped` were counted
    _counted_in: int = -1  # the step

    def uniform(self, direction: Tensor, index: int) -> Tensor:
        """This step's numbers in [-1, 1) of this worker for tensor ``index``, of the direction's size."""
        step, stream = self.param_groups[0]["step"], encoder_stream(self.vote.rank)
        return random_uniform(self.vote.seed, step, stream, index, direction.numel(), direction.device)

    def count_clipped(self, direction: Tensor, radius: float | Tensor) -> None:
        """Add a tensor to the step's count, where one is asked for."""
        if not self.counts_clipping:
            return
        step = self.param_groups[0]["step"]
        if step != self._counted_in:
            self._clipped, self._encoded, self._counted_in = None, 0, step
        count = clipped(direction, radius)
        self._clipped = count if self._clipped is None else self._clipped + count
        self._encoded += direction.numel()

    @property
    def clip_fraction(self) -> Tensor | None:
        """Share of this worker's coordinates that were clipped when it last counted.

        A float32 tensor without dimensions; None where ``counts_clipping`` is off, or nothing was counted
        yet. Above some percent the votes are no longer unbiased: a larger radius would be.
        """
        if not self.counts_clipping or self._clipped is None:
            return None
        return self._clipped.to(torch.float32) / self._encoded

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "counts_clipping": self.counts_clipping}


class StochasticSigns(RandomizedSigns):
    """A sign optimizer that votes with ``S_R`` of its direction, ``P[+1] = (1 + v / R) / 2``.

    A group's ``radius`` and ``radius_policy`` give ``R``, see :mod:`lightning_signvr.signs.encoders.radius`.
    State: ``running_maximum`` with the policy ``"running"``.
    """

    _running: Tensor | None = None  # of the parameter that was estimated last: encode is called next

    @override
    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        check_above_zero("radius", group["radius"])
        check_choice("radius_policy", group["radius_policy"], RADIUS_POLICIES)

    @override
    def estimate(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        direction = super().estimate(parameter, group)
        state = self.state[parameter]
        if group["radius_policy"] == "running" and "running_maximum" not in state:
            state["running_maximum"] = torch.zeros_like(direction)
        self._running = state.get("running_maximum")
        return direction

    @override
    def encode(self, direction: Tensor, group: dict[str, Any], index: int) -> Tensor:
        if direction.numel() == 0:
            return direction
        radius = radius_of(direction, group["radius_policy"], group["radius"], self._running)
        self.count_clipped(direction, radius)
        return dither(direction, self.uniform(direction, index), radius)
