"""The gradients of one minibatch at several points, for any training loop."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lightning_signvr.optimizers import AnchoredOptimizer
from lightning_signvr.optimizers.random_state import RandomState

if TYPE_CHECKING:
    from torchmetrics import Metric

# what a Metric keeps beside its states; private, so that a release may lack some of them
_METRIC_ATTRIBUTES = (
    "_update_count",
    "_update_called",
    "_computed",
    "_forward_cache",
    "_cache",
    "_is_synced",
)


class Replay:
    """Runs a microbatch's forward and backward pass again at an optimizer's anchors.

    The second pass begins with the same random numbers (dropout masks) and buffers as the first. Its
    traces are removed: buffers (BatchNorm's statistics), torchmetrics' states and the random generators
    end as the first pass left them.

    Args:
        optimizer: whose anchors are visited; one without anchors is never replayed for.
        module: whose buffers and metrics are protected; None where it has none.

    Example:
        >>> from lightning_signvr.optimizers import SSVR
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(), torch.nn.Linear(4, 1))
        >>> optimizer = SSVR(model.parameters(), lr=0.01)
        >>> replay = Replay(optimizer, model)
        >>> for batch in torch.randn(5, 8, 3):
        ...     optimizer.zero_grad()
        ...     loss = replay.backward(lambda: model(batch).square().mean())
        ...     optimizer.step()
    """

    def __init__(self, optimizer: Any, module: nn.Module | None = None) -> None:
        self.optimizer = optimizer
        self.module = module

    def backward(
        self, loss_of: Callable[[], Tensor], backward: Callable[[Tensor], object] = Tensor.backward
    ) -> Tensor:
        """Compute the loss and its gradients here and at each active anchor.

        Call it once per microbatch; gradients add up until the optimizer's ``zero_grad``.

        Args:
            loss_of: runs the forward pass and returns the loss; called once per point.
            backward: what to do with a loss, for instance ``accelerator.backward`` or ``lambda loss:
                scaler.scale(loss).backward()``.

        Returns:
            The loss at the current point, detached.
        """
        before = Surroundings.capture(self.module)
        loss = loss_of()
        backward(loss)
        self.at_anchors(before, lambda: backward(loss_of()))
        return loss.detach()

    def at_anchors(self, before: Surroundings, evaluate: Callable[[], object]) -> None:
        """Call ``evaluate``, which runs forward and backward, at each active anchor.

        Args:
            before: what was around the model at the start of the first pass.
            evaluate: leaves its gradients in ``.grad``.
        """
        optimizer = self.optimizer
        if not isinstance(optimizer, AnchoredOptimizer):
            return
        after: Surroundings | None = None
        try:
            for name in optimizer.active_anchors():
                after = after or Surroundings.capture(self.module)
                before.restore_inputs()
                with optimizer.at(name):
                    evaluate()
        finally:
            if after is not None:
                after.restore()


@dataclass(frozen=True)
class Surroundings:
    """What a pass reads or changes besides parameters: random generators, buffers, metrics."""

    random_state: RandomState
    buffers: list[tuple[nn.Module, str, Tensor, Tensor]]
    metrics: list[tuple[Metric, dict[str, Any]]]

    @classmethod
    def capture(cls, module: nn.Module | None) -> Surroundings:
        modules = [] if module is None else list(module.modules())
        buffers = [
            (part, name, buffer, buffer.detach().clone())
            for part in modules
            for name, buffer in part._buffers.items()
            if buffer is not None
        ]
        metrics = [(metric, _metric_state(metric)) for metric in _metrics_among(modules)]
        return cls(RandomState.capture(), buffers, metrics)

    def restore_inputs(self) -> None:
        """Put back what a pass reads: random generators and buffers."""
        for part, name, buffer, value in self.buffers:
            buffer.detach().copy_(value)
            part._buffers[name] = buffer  # a pass may have put another tensor there
        self.random_state.restore()

    def restore(self) -> None:
        """Put back everything."""
        self.restore_inputs()
        for metric, state in self.metrics:
            metric.__dict__.update(state)


def _metrics_among(modules: Iterable[nn.Module]) -> list[Metric]:
    # who has metrics has imported torchmetrics; the others need not have it at all
    torchmetrics = sys.modules.get("torchmetrics")
    metric_class = getattr(torchmetrics, "Metric", None)  # none while it is being imported
    return [] if metric_class is None else [part for part in modules if isinstance(part, metric_class)]


def _metric_state(metric: Metric) -> dict[str, Any]:
    names = (*metric._defaults, *_METRIC_ATTRIBUTES)
    return {name: _copy(metric.__dict__[name]) for name in names if name in metric.__dict__}


def _copy(value: Any) -> Any:
    # metrics add to their tensors in place, and append to their lists of tensors
    return value.clone() if isinstance(value, Tensor) else copy(value)
