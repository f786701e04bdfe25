"""One worker's packed votes on a fixed list of tensors."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_signvr.signs import pack_signs, pack_signs_and_abstentions, random_bytes
from lightning_signvr.voting.decisions import Decision
from lightning_signvr.voting.exchange import Exchange
from lightning_signvr.voting.layout import Layout
from lightning_signvr.voting.result import VotedSigns
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
        self._exchange = Exchange(layout, rules, scaled, rank, workers, device)
        self._negative = torch.zeros(self._exchange.plane_size, dtype=torch.uint8, device=device)
        self._abstaining = torch.zeros_like(self._negative)
        self._missing = [False] * len(shapes)
        self._abstains = False  # on any coordinate

    def fill(self, directions: Sequence[Tensor | None], step: int) -> None:
        """Pack the signs of ``directions``, and by the zero rule what stands for no sign."""
        self._missing = [direction is None for direction in directions]
        found = [self._pack(index, direction, step) for index, direction in enumerate(directions)]
        self._abstains = any(found)

    def _pack(self, index: int, direction: Tensor | None, step: int) -> bool:
        """Pack one tensor; whether it has abstentions."""
        part = self._layout.part(index)
        negative, abstaining = self._negative[part], self._abstaining[part]
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
    ) -> VotedSigns:
        """Exchange what :meth:`fill` packed; a collective. See :meth:`Exchange.run`."""
        abstaining = self._abstaining if self._abstains else None
        counts, present = self._exchange.run(
            self._negative, abstaining, self._missing, scales, decide, step, traffic, group
        )
        return VotedSigns(
            layout=self._layout,
            shapes=self._shapes,
            negative=self._negative,
            undecided=self._exchange.undecided,
            present=present,
            counts=counts,
            workers=self._workers,
        )
