"""What an Accelerator does differently when its optimizers vote."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from accelerate.optimizer import AcceleratedOptimizer  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_signvr.accelerate.checks import check_model
from lightning_signvr.accelerate.clipping import clip_anchors, refuse_clipping_by_value
from lightning_signvr.module_state import broadcast_state

if TYPE_CHECKING:
    from lightning_signvr.accelerate.entry import SignVote

_Base: Any = object  # an Accelerator, which has no types


class VotingMixin(_Base):  # type: ignore[misc]
    """Put before the class of an existing Accelerator; it has no ``__init__``.

    Attributes:
        sign_vote: what the votes have to do with it.
    """

    sign_vote: SignVote

    def prepare_model(
        self, model: nn.Module, device_placement: bool | None = None, evaluation_mode: bool = False
    ) -> Any:
        """As ever, but not wrapped: gradients stay local. All ranks begin with rank 0's state."""
        check_model(model)
        prepared = super().prepare_model(model, device_placement, evaluation_mode=True)
        if not evaluation_mode:
            broadcast_state(prepared)
        return prepared

    def prepare_optimizer(self, optimizer: Optimizer, device_placement: bool | None = None) -> Any:
        """As ever, and it will vote."""
        is_wrapped = isinstance(optimizer, AcceleratedOptimizer)
        if not is_wrapped and any(optimizer is known for known in self.sign_vote.optimizers):
            raise ValueError(
                f"this {type(optimizer).__name__} was prepared twice: use what the first call of "
                "accelerator.prepare returned"
            )
        prepared = super().prepare_optimizer(optimizer, device_placement)
        self.sign_vote.connect(prepared)
        return prepared

    def clip_grad_norm_(self, parameters: Any, max_norm: float, norm_type: float = 2) -> Tensor:
        """As ever, on this worker's own gradients; those at other points get the same coefficient."""
        clipped = _listed(parameters)
        total: Tensor = super().clip_grad_norm_(clipped, max_norm, norm_type)
        coefficient = torch.clamp(max_norm / (total + 1e-6), max=1.0)  # as clip_grad_norm_ has it
        clip_anchors(self.sign_vote.optimizers, clipped, coefficient)
        return total

    def clip_grad_value_(self, parameters: Any, clip_value: float) -> None:
        """As ever; refused where two gradients are compared."""
        clipped = _listed(parameters)
        refuse_clipping_by_value(self.sign_vote.optimizers, clipped)
        super().clip_grad_value_(clipped, clip_value)

    def save_state(self, *args: Any, **kwargs: Any) -> Any:
        """As ever, with buffers averaged and every worker's own optimizer state; a collective."""
        self.sign_vote.average_buffers()
        return super().save_state(*args, **kwargs)

    def load_state(self, *args: Any, **kwargs: Any) -> None:
        """As ever, with each worker's own optimizer state."""
        super().load_state(*args, **kwargs)
        self.sign_vote.apply_loaded()

    def free_memory(self, *objects: Any) -> Any:
        """As ever, and the optimizers vote no longer."""
        self.sign_vote.disconnect()
        return super().free_memory(*objects)


def _listed(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    return [parameters] if isinstance(parameters, Tensor) else list(parameters)
