"""Optimizers whose workers draw their signs at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_signvr.optimizers.base import SignOptimizer
from lightning_signvr.optimizers.checks import check_above_zero, check_choice
from lightning_signvr.signs import random_uniform
from lightning_signvr.signs.encoders import (
    MAGNITUDE_POLICIES,
    RADIUS_POLICIES,
    clipped,
    dither,
    magnitude_of,
    merged_magnitudes,
    radius_of,
)
from lightning_signvr.voting import VotedSigns
from lightning_signvr.voting.rules import encoder_stream

_LARGEST = torch.finfo(torch.float32).max


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
    With ``shared_radius`` and the policies ``"max"`` and ``"rms"``, each of several workers sends its
    direction's magnitude in the vote's header, a float32 per tensor, and *the next* step's radius is made of
    all of them, on all workers alike, by ``merged_magnitudes``, which bounds what a broken one
    can do. A lone worker has nothing to share: its radius is of the step itself.

    State: ``shared_magnitude``, a float32 without dimensions and equal on all workers, of the last step in
    which any worker's was not 0; ``running_maximum`` with the policy ``"running"``.
    """

    _parameters: Sequence[Tensor] = ()  # of this step's vote
    _sent: list[float] | None = None  # their magnitudes on this worker; None where no group shares any

    @override
    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        check_above_zero("radius", group["radius"])
        check_choice("radius_policy", group["radius_policy"], RADIUS_POLICIES)
        shared = group["shared_radius"]
        if shared is not None and not isinstance(shared, bool):
            raise TypeError(f"shared_radius must be True, False or None, got {shared!r}")
        if shared and group["radius_policy"] == "running":
            raise ValueError(
                'shared_radius must be None or False with radius_policy="running", which has a radius for '
                'each coordinate, too many to send; for a shared radius use "max" or "rms"'
            )

    @override
    def encode(self, direction: Tensor, group: dict[str, Any], index: int) -> Tensor:
        if direction.numel() == 0:
            return direction
        radius = self._radius(direction, group, index)
        self.count_clipped(direction, radius)
        return dither(direction, self.uniform(direction, index), radius)

    def _radius(self, direction: Tensor, group: dict[str, Any], index: int) -> float | Tensor:
        state, policy = self.state[self._parameters[index]], group["radius_policy"]
        if self._sent is not None and _shares(group):
            own = magnitude_of(direction, policy)
            self._sent[index] = min(float(own), _LARGEST)
            shared: Tensor = state.get("shared_magnitude", own)
            return shared * float(group["radius"])
        if policy == "running" and "running_maximum" not in state:
            state["running_maximum"] = torch.zeros_like(direction)
        return radius_of(direction, policy, group["radius"], state.get("running_maximum"))

    @override
    def cast(self, parameters: Sequence[Tensor], groups: Sequence[dict[str, Any]]) -> VotedSigns:
        sharing = self.vote.workers > 1 and any(map(_shares, self.param_groups))
        self._parameters, self._sent = parameters, [0.0] * len(parameters) if sharing else None
        votes = self.vote(self.directions(parameters, groups), like=parameters, scales=self._sent)
        if votes.scales is not None:
            self._keep(votes.scales, parameters, groups)
        return votes

    def _keep(self, sent: Tensor, parameters: Sequence[Tensor], groups: Sequence[dict[str, Any]]) -> None:
        """What the next step's radii are made of, from what all workers sent."""
        merged = {policy: merged_magnitudes(sent, policy).tolist() for policy in MAGNITUDE_POLICIES}
        for index, (parameter, group) in enumerate(zip(parameters, groups, strict=True)):
            magnitude = merged[group["radius_policy"]][index] if _shares(group) else 0
            if magnitude > 0:
                self.state[parameter]["shared_magnitude"] = torch.tensor(
                    magnitude, dtype=torch.float32, device=parameter.device
                )


def _shares(group: dict[str, Any]) -> bool:
    """Whether a group's radius is made of what all workers sent, where there are several."""
    return group["radius_policy"] in MAGNITUDE_POLICIES and group["shared_radius"] is not False
