"""How a Lightning strategy gives variance-reduced optimizers their second gradient."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_signvr.connecting import share_overflows, unwrapped
from lightning_signvr.optimizers import AnchoredOptimizer
from lightning_signvr.optimizers.clipping import check_clips_by_value, clip_grad_norm_
from lightning_signvr.replay import Replay, Surroundings

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.plugins import Precision
    from lightning.pytorch.strategies import DDPStrategy as _Base
else:
    _Base = ABC  # Lightning's own Strategy has it: so Python lets an existing strategy take on this class


@dataclass(frozen=True)
class _Microbatch:
    """What ``training_step`` was called with, and what was around it then."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    before: Surroundings
    ddp_sends_buffers: bool | None  # None where the module is not wrapped in DDP


class ReplayMixin(_Base):
    """Runs each microbatch's ``training_step`` and backward pass again at the optimizer's anchors.

    With automatic optimization that happens after the normal backward pass, for every microbatch; with
    manual optimization, where ``optimizer.step(closure)`` runs its closure. The second pass logs
    nothing, calls no hooks and leaves no trace but the gradients. It costs nothing for optimizers
    without anchors. Where the module is wrapped in DDP, the second pass goes through the wrapper too, so
    that its gradients are averaged over the ranks like the others.

    It has no ``__init__``: :class:`~lightning_signvr.callbacks.SecondGradient` mixes it into a strategy that
    exists already.

    Attributes:
        in_replay: whether a second pass is running; a ``training_step`` with side effects may ask.
        nonfinite_limit: of :class:`~lightning_signvr.amp.SharedGradScaler`.
    """

    in_replay: bool = False
    nonfinite_limit: int | None = 50
    _microbatch: _Microbatch | None = None

    # -- automatic optimization -------------------------------------------------------------------

    @override
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        assert self.lightning_module is not None
        if not self.in_replay and any(_is_anchored(optimizer) for optimizer in self.optimizers):
            # new containers around the same tensors, since a training_step may pop from its batch
            args_kept, kwargs_kept = apply_to_collection((args, kwargs), Tensor, lambda tensor: tensor)
            before = Surroundings.capture(self.lightning_module)
            ddp_sends_buffers = getattr(self.model, "require_forward_param_sync", None)
            self._microbatch = _Microbatch(args_kept, kwargs_kept, before, ddp_sends_buffers)
        return super().training_step(*args, **kwargs)

    @override
    def backward(
        self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        assert self.lightning_module is not None
        if self.in_replay:  # manual_backward in a closure that runs again
            self._backward_without_hooks(closure_loss, *args, **kwargs)
            return closure_loss.detach()
        loss: Tensor = super().backward(closure_loss, optimizer, *args, **kwargs)
        if self._microbatch is not None and self.lightning_module.automatic_optimization:
            microbatch, self._microbatch = self._microbatch, None
            self._replay(optimizer, microbatch.before, lambda: self._repeat(microbatch))
        return loss

    def _repeat(self, microbatch: _Microbatch) -> None:
        assert self.lightning_module is not None
        if microbatch.ddp_sends_buffers is not None:  # rank 0's, before the first microbatch of a step
            self.model.require_forward_param_sync = microbatch.ddp_sends_buffers  # type: ignore[union-attr]
        parts = self.lightning_module.trainer.accumulate_grad_batches
        self._forward_and_backward(microbatch.args, microbatch.kwargs, parts)

    def _forward_and_backward(self, args: tuple[Any, ...], kwargs: dict[str, Any], divisor: float) -> None:
        output = self.training_step(*args, **kwargs)
        loss = output["loss"] if isinstance(output, dict) else output
        if loss is None:
            raise RuntimeError(
                "training_step returned a loss the first time and None when it was repeated at the previous "
                "iterate: what it returns must not depend on a state that it changes"
            )
        self._backward_without_hooks(loss / divisor)

    def _backward_without_hooks(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        assert self.lightning_module is not None
        scaler = getattr(self.precision_plugin, "scaler", None)
        self.pre_backward(loss)  # prepares DDP where optimization is manual
        self.lightning_module.backward(loss if scaler is None else scaler.scale(loss), *args, **kwargs)
        self.post_backward(loss)

    def _replay(self, optimizer: Any, before: Surroundings, evaluate: Callable[[], object]) -> None:
        assert self.lightning_module is not None
        with self._replaying(self.lightning_module):
            Replay(unwrapped(optimizer), self.lightning_module).at_anchors(before, evaluate)

    @contextmanager
    def _replaying(self, module: nn.Module) -> Iterator[None]:
        """Say so, and keep the module's ``log`` quiet."""
        self.in_replay = True
        try:
            for name in ("log", "log_dict"):
                module.__dict__[name] = _do_nothing
            yield
        finally:
            for name in ("log", "log_dict"):
                module.__dict__.pop(name, None)
            self.in_replay = False

    # -- full gradients ---------------------------------------------------------------------------

    def add_gradient(self, batch: Any, batch_idx: int, weight: float) -> None:
        """Add ``weight`` times the gradient of a batch's ``training_step`` to ``.grad``.

        Quiet like a second pass: no hooks, no logs. Under a GradScaler it is scaled by its scale.
        """
        assert self.lightning_module is not None
        with self._replaying(self.lightning_module):
            self._forward_and_backward((batch, batch_idx), {}, 1 / weight)

    # -- manual optimization ----------------------------------------------------------------------

    @override
    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any
    ) -> Any:
        assert self.lightning_module is not None
        if not self.lightning_module.automatic_optimization and _is_anchored(optimizer):
            closure = self._twice(optimizer, closure)
        return super().optimizer_step(optimizer, closure, model, **kwargs)

    def _twice(self, optimizer: Optimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
        def both() -> Any:
            before = Surroundings.capture(self.lightning_module)
            result = closure()
            self._replay(optimizer, before, closure)
            return result

        return both

    # -- set-up -----------------------------------------------------------------------------------

    @override
    def setup_optimizers(self, trainer: Trainer) -> None:
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            if isinstance(optimizer, AnchoredOptimizer):
                optimizer.replays_closures = False  # done here, without hooks and logs

    @override
    def setup_precision_plugin(self) -> None:
        share_overflows(self.precision_plugin, self.nonfinite_limit)
        super().setup_precision_plugin()
        clip_together(self.precision_plugin)

    @override
    def teardown(self) -> None:
        for name in ("clip_grad_by_norm", "clip_grad_by_value"):
            self.precision_plugin.__dict__.pop(name, None)
        super().teardown()


def clip_together(plugin: Precision) -> None:
    """Make a precision plugin clip gradients at anchors together with those in ``.grad``."""

    def by_norm(optimizer: Optimizer, clip_val: float) -> None:
        clip_grad_norm_(unwrapped(optimizer), clip_val)

    def by_value(optimizer: Optimizer, clip_val: float) -> None:
        check_clips_by_value(unwrapped(optimizer))
        torch.nn.utils.clip_grad_value_(plugin.main_params(optimizer), clip_val)

    plugin.__dict__.update(clip_grad_by_norm=by_norm, clip_grad_by_value=by_value)


def _is_anchored(optimizer: Any) -> bool:
    """Whether ``optimizer`` has anchors to visit in this step."""
    optimizer = unwrapped(optimizer)
    return isinstance(optimizer, AnchoredOptimizer) and bool(optimizer.active_anchors())


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    pass
