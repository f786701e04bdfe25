"""A GradScaler whose ranks agree on when to skip a step."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from lightning_signvr.optimizers import AnchoredOptimizer
from lightning_signvr.voting.group import world
from lightning_signvr.voting.nonfinite import NonfiniteRanks
from lightning_signvr.voting.rules import check_optional_count
from lightning_signvr.voting.traffic import Traffic


class SharedGradScaler(GradScaler):
    """Shares the found-inf flags among the ranks before any of them decides.

    Gradients stay local under a vote, so an overflow is seen by one rank alone. It would skip
    ``optimizer.step()`` while the others wait for its vote, and the loss scales would part. Here all
    ranks skip the step together.

    An overflow now and then is how a loss scale is found. A worker whose gradients are not finite at any
    scale (NaN in its data, broken memory) would halve it for ever, and nothing would be learnt any more. So
    all ranks know whose gradients they were: rank 0 logs when that begins and ends, and after
    ``nonfinite_limit`` steps in a row all ranks raise. A start with too large a scale stays far below that:
    2**16 is 1 after 16 steps.

    Args:
        device, init_scale, growth_factor, backoff_factor, growth_interval, enabled: as for
            :class:`torch.amp.GradScaler`.
        process_group: the ranks that vote together; None for all.
        nonfinite_limit: after so many steps in a row in which a rank's gradients had NaN or inf, at least 1,
            it is an error; None for never. Each optimizer's steps are counted by themselves.

    Attributes:
        traffic: the bytes of the shared flags.

    Raises:
        ValueError, TypeError: ``nonfinite_limit`` is neither None nor an int of at least 1.

    Example:
        >>> scaler = SharedGradScaler("cpu", init_scale=8.0)
        >>> scaler.get_scale()
        8.0
    """

    def __init__(
        self,
        device: str = "cuda",
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
        process_group: dist.ProcessGroup | None = None,
        nonfinite_limit: int | None = 50,
    ) -> None:
        super().__init__(device, init_scale, growth_factor, backoff_factor, growth_interval, enabled)
        check_optional_count("nonfinite_limit", nonfinite_limit, "for no limit")
        self.process_group = process_group
        self.nonfinite_limit = nonfinite_limit
        self.traffic = Traffic(purpose="the exchange of overflow flags")
        consequence = "all ranks skip the step and lower the loss scale"
        # by the optimizer's id, as torch keeps its own
        self._steps: Counter[int] = Counter()
        self._nonfinite: dict[int, NonfiniteRanks] = defaultdict(
            partial(NonfiniteRanks, nonfinite_limit, consequence)
        )

    @classmethod
    def like(
        cls,
        scaler: GradScaler,
        process_group: dist.ProcessGroup | None = None,
        nonfinite_limit: int | None = 50,
    ) -> SharedGradScaler:
        """A shared scaler with the settings and the state of ``scaler``."""
        shared = cls(
            scaler._device,
            enabled=scaler.is_enabled(),
            process_group=process_group,
            nonfinite_limit=nonfinite_limit,
        )
        if scaler.is_enabled():
            shared.load_state_dict(scaler.state_dict())
        return shared

    def unscale_(self, optimizer: Optimizer) -> None:
        """As torch's, gradients at anchors included, then found-inf on all ranks where it is on any.

        A collective where there are several ranks.

        Raises:
            RuntimeError: on all ranks, at the ``nonfinite_limit``-th step in a row of one of them.
        """
        super().unscale_(optimizer)
        if not self._enabled:
            return
        assert self._scale is not None
        if isinstance(optimizer, AnchoredOptimizer):
            self._unscale_anchors(optimizer)
        flags = self._per_optimizer_states[id(optimizer)]["found_inf_per_device"]
        if not flags:  # no gradient here at all: still take part, and have a flag to be found
            flags[self._scale.device] = torch.zeros_like(self._scale)
        overflowed = self._gather(flags)
        for flag in flags.values():
            flag.fill_(any(overflowed))
        self._note(optimizer, overflowed)

    def _gather(self, flags: dict[torch.device, Tensor]) -> Sequence[bool]:
        """Of each rank, whether any of its flags is set."""
        device = next(iter(flags))
        own = torch.stack([flag.to(device) for flag in flags.values()]).amax(0, keepdim=True).to(torch.uint8)
        _, workers = world(self.process_group)
        if workers == 1:
            return [bool(own)]
        every = own.new_empty(workers, 1)
        self.traffic.all_gather(every, own, self.process_group).wait()
        return [flag > 0 for flag in every.view(-1).tolist()]

    def _note(self, optimizer: Optimizer, overflowed: Sequence[bool]) -> None:
        """Log whose gradients are not finite, and raise where that does not end."""
        key, nonfinite = id(optimizer), self._nonfinite[id(optimizer)]
        ranks = [rank for rank, flag in enumerate(overflowed) if flag]
        nonfinite.note(self._steps[key], ranks, speaks=world(self.process_group)[0] == 0)
        self._steps[key] += 1
        if nonfinite.lost:
            names = ", ".join(f"rank {rank}" for rank in nonfinite.lost)
            raise RuntimeError(
                f"the gradients of {names} had NaN or inf in {nonfinite.limit} steps in a row, at any loss "
                "scale, and all ranks skip such steps: look for NaN in the data and the loss there; where "
                "float16 is too narrow for the model, train in bfloat16; where the scale began far too "
                "large, give the GradScaler a smaller init_scale or a larger nonfinite_limit"
            )

    def overflowed(self, optimizer: Optimizer) -> bool:
        """Whether a gradient of this step was not finite on any rank, as :meth:`unscale_` found."""
        return any(bool(flag) for flag in self._found_inf_per_device(optimizer).values())

    def _unscale_anchors(self, optimizer: AnchoredOptimizer) -> None:
        assert self._scale is not None
        inverse = self._scale.double().reciprocal().float()
        flags = self._per_optimizer_states[id(optimizer)]["found_inf_per_device"]
        for gradient in optimizer.anchor_gradients():
            gradient.mul_(inverse.to(gradient.device))
            overflowed = (~torch.isfinite(gradient).all()).float()
            flag = flags.setdefault(gradient.device, torch.zeros_like(overflowed))
            torch.maximum(flag, overflowed, out=flag)
