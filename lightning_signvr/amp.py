"""A GradScaler whose ranks agree on when to skip a step."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.amp import GradScaler
from torch.optim import Optimizer

from lightning_signvr.optimizers import AnchoredOptimizer
from lightning_signvr.voting.traffic import Traffic


class SharedGradScaler(GradScaler):
    """Shares the found-inf flag among the ranks before any of them decides.

    Gradients stay local under a vote, so an overflow is seen by one rank alone. It would skip
    ``optimizer.step()`` while the others wait for its vote, and the loss scales would part. Here all
    ranks skip the step together.

    Args:
        device, init_scale, growth_factor, backoff_factor, growth_interval, enabled: as for
            :class:`torch.amp.GradScaler`.
        process_group: the ranks that vote together; None for all.

    Attributes:
        traffic: the bytes of the shared flags.

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
    ) -> None:
        super().__init__(device, init_scale, growth_factor, backoff_factor, growth_interval, enabled)
        self.process_group = process_group
        self.traffic = Traffic()

    @classmethod
    def like(cls, scaler: GradScaler, process_group: dist.ProcessGroup | None = None) -> SharedGradScaler:
        """A shared scaler with the settings and the state of ``scaler``."""
        shared = cls(scaler._device, enabled=scaler.is_enabled(), process_group=process_group)
        if scaler.is_enabled():
            shared.load_state_dict(scaler.state_dict())
        return shared

    def unscale_(self, optimizer: Optimizer) -> None:
        """As torch's, gradients at anchors included, then the largest found-inf flag of all ranks.

        A collective where there are several ranks.
        """
        super().unscale_(optimizer)
        if self._enabled and isinstance(optimizer, AnchoredOptimizer):
            self._unscale_anchors(optimizer)
        if not self._enabled or not dist.is_initialized() or dist.get_world_size(self.process_group) == 1:
            return
        flags = self._per_optimizer_states[id(optimizer)]["found_inf_per_device"]
        if not flags:  # no gradient here at all: still take part, and have a flag to be found
            assert self._scale is not None
            flags[self._scale.device] = torch.zeros_like(self._scale)
        for flag in flags.values():
            self.traffic.all_reduce_max(flag, self.process_group)

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
