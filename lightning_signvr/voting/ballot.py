"""One worker's packed votes on a fixed list of tensors."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_signvr.signs import (
    Counts,
    check_signable,
    count_ones,
    pack_signs,
    pack_signs_and_abstentions,
    random_bytes,
)
from lightning_signvr.voting.decisions import Decision
from lightning_signvr.voting.exchange import Exchange, Outcome
from lightning_signvr.voting.layout import Layout
from lightning_signvr.voting.rules import ZeroRule, zero_stream
from lightning_signvr.voting.traffic import Traffic


class Ballot:
    """Fill it in with directions, then cast it."""

    def __init__(
        self,
        layout: Layout,
        shapes: Sequence[torch.Size],
        device: torch.device,
        rank: int,
        workers: int,
        rules: Hashable,
        scaled: bool,
        zeros: ZeroRule,
        seed: int,
    ) -> None:
        self._layout, self._shapes, self._device = layout, shapes, device
        self._rank, self._workers = rank, workers
        self._zeros, self._seed = zeros, seed
        self.exchange = Exchange(layout, rules, scaled, rank, workers, device)
        self.negative = torch.zeros(self.exchange.plane_size, dtype=torch.uint8, device=device)
        self._abstaining = torch.zeros_like(self.negative)
        self._missing = [False] * len(shapes)
        self._abstains = False  # on any coordinate

    @property
    def abstaining(self) -> Tensor | None:
        """uint8 plane, 1 where this worker does not vote; None for nowhere."""
        return self._abstaining if self._abstains else None

    def fill(self, directions: Iterable[Tensor | None], step: int) -> float:
        """Pack the signs of ``directions``, and by the zero rule what stands for no sign.

        Each direction is packed before the next one is asked for, so that they can be made one at a time.

        Returns:
            Seconds spent on packing.
        """
        self._abstains, seconds, count = False, 0.0, 0
        for index, direction in enumerate(directions):
            started = time.perf_counter()
            if index == len(self._shapes):
                raise ValueError(f"directions has more tensors than like, which has {len(self._shapes)}")
            if direction is not None:
                self._check(index, direction)
            self._missing[index] = direction is None
            self._abstains |= self._pack(index, direction, step)
            count += 1
            seconds += time.perf_counter() - started
        if count < len(self._shapes):
            raise ValueError(f"directions has {count} tensors, like has {len(self._shapes)}")
        return seconds

    def _check(self, index: int, direction: Tensor) -> None:
        check_signable(direction, f"directions[{index}]")
        if direction.shape != self._shapes[index]:
            raise ValueError(
                f"directions[{index}] has shape {tuple(direction.shape)}, like[{index}] has "
                f"{tuple(self._shapes[index])}"
            )
        if direction.device != self._device:
            raise ValueError(
                f"directions[{index}] is on {direction.device}, the vote is on {self._device}: the tensors "
                "of one vote must be on one device"
            )

    def _pack(self, index: int, direction: Tensor | None, step: int) -> bool:
        """Pack one tensor; whether it has abstentions."""
        part = self._layout.part(index)
        negative, abstaining = self.negative[part], self._abstaining[part]
        if direction is None:
            negative.zero_()
            abstaining.fill_(255)
            if self._layout.padding(index):  # padding never abstains
                abstaining[-1] = 255 >> self._layout.padding(index)
            return True
        if self._zeros == "positive":
            pack_signs(direction, negative)
            abstaining.zero_()
            return False
        *_, found = pack_signs_and_abstentions(direction, negative, abstaining)
        if found and self._zeros == "random":
            stream = zero_stream(self._rank)
            negative |= abstaining & random_bytes(
                self._seed, step, stream, part.start, part.stop, self._device
            )
            abstaining.zero_()
            return False
        return found

    def cast(
        self,
        scales: Sequence[float] | None,
        decide: Decision,
        group: dist.ProcessGroup | None,
        step: int,
        traffic: Traffic,
        detailed: bool,
    ) -> Outcome:
        """Exchange what :meth:`fill` packed; a collective. See :meth:`Exchange.run`."""
        return self.exchange.run(
            self.negative, self.abstaining, self._missing, scales, decide, step, traffic, group, detailed
        )

    def own_outcome(self) -> dict[str, Any]:
        """A lone worker's vote is its own sign, nothing to count: fields of :class:`VotedSigns`."""
        silent = 0 if self.abstaining is None else count_ones(self.abstaining)
        votes = self._layout.num_parameters - silent
        return {
            "planes": self.negative.view(1, -1),
            "undecided": self.abstaining,
            "present": [not missing for missing in self._missing],
            "counts": Counts(votes=votes, margin=votes, silent=silent),
        }
