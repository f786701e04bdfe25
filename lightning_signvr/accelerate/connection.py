"""One prepared optimizer and the vote that it follows."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from typing_extensions import override

from lightning_signvr.accelerate.meter import Meter
from lightning_signvr.connecting import Connection as _Connection
from lightning_signvr.optimizers import SignOptimizer


class Connection(_Connection):
    """Makes an optimizer follow a vote, and looks at what Accelerate makes it do.

    Args:
        optimizer: without Accelerate's wrapper.
        accelerator: that has prepared it.
        rules: of the vote, where the optimizer was not given one of its own.

    Attributes:
        vote: what decides.
        meter: what it decided and cost.

    Raises:
        ValueError: an optimizer with a LocalVote.
        TypeError: an optimizer that cannot follow a vote (LBFGS).
    """

    def __init__(self, optimizer: Optimizer, accelerator: Any, rules: dict[str, Any]) -> None:
        super().__init__(optimizer, rules, announce=accelerator.is_main_process)
        if isinstance(optimizer, SignOptimizer):
            self.vote.step = optimizer.param_groups[0]["step"]  # it may have stepped before
        self.meter = Meter(self.vote)
        self._accelerator = accelerator
        self._is_checked = False
        self._check = optimizer.register_step_pre_hook(self._before_step)

    @override
    def close(self) -> None:
        super().close()
        self._check.remove()

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is the optimizer
        if closure is not None and self._accelerator.scaler is not None:
            raise ValueError(
                'optimizer.step(closure) with mixed_precision="fp16" would step on gradients that were never '
                "unscaled: call sv.backward(loss_of), then optimizer.step() without a closure"
            )
        if not self._is_checked:
            self._check_models()
            self._is_checked = True

    def _check_models(self) -> None:
        prepared = {id(p) for model in self._accelerator._models for p in model.parameters()}
        if any(id(p) not in prepared for group in self.optimizer.param_groups for p in group["params"]):
            raise RuntimeError(
                f"{type(self.optimizer).__name__} has parameters of a model that was not prepared, so that "
                "the workers may not start from the same values: pass the model to accelerator.prepare too"
            )

    def state_dict(self) -> dict[str, Any]:
        """What this worker must save itself."""
        if isinstance(self.optimizer, SignOptimizer):
            return self.optimizer.state_dict()
        return {"step": self.vote.step}  # the rest is the same on all workers, and Accelerate saves it

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what this worker has saved."""
        if isinstance(self.optimizer, SignOptimizer):
            self.optimizer.load_state_dict(state)
            self.vote.step = self.optimizer.param_groups[0]["step"]
        else:
            self.vote.step = state["step"]
        self.meter.restart()
