"""Finite-sum methods: a snapshot of the parameters at which the full gradient is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_signvr.estimators import FULL_GRADIENT, PREVIOUS, SNAPSHOT, state_dtype
from lightning_signvr.optimizers.anchored import AnchoredOptimizer
from lightning_signvr.optimizers.checks import check_count
from lightning_signvr.optimizers.gathering import check_finite, gathered_gradients, trained_parameters


class SnapshotOptimizer(AnchoredOptimizer):
    """A sign optimizer that corrects minibatch gradients by a full gradient at a snapshot.

    Before the first step, and then every ``period`` steps, take a snapshot: compute the mean gradient
    over all of this worker's data at the current point,

    .. code-block:: python

        if optimizer.snapshot_due:
            with optimizer.take_snapshot():
                for inputs, targets in loader:
                    loss = loss_of(inputs, targets)  # mean over the minibatch
                    (loss * len(inputs) / len(dataset)).backward()

    Under Lightning, :class:`~lightning_signvr.callbacks.SnapshotGradient` does that. Each worker's
    snapshot gradient is of its own data.

    What becomes of it is the method's: those of SVRG's kind keep it and the point, and evaluate every
    minibatch at the snapshot too (see :class:`AnchoredOptimizer`); it is not communicated. Those of DVR's
    kind use it up in the next step.
    """

    anchors = {SNAPSHOT: "snapshot"}  # noqa: RUF012

    @override
    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        if group["period"] is not None:
            check_count("period", group["period"])
        group.setdefault("snapshot_step", None)

    @property
    def snapshot_due(self) -> bool:
        """Whether the next step wants a new snapshot: at the start, and ``period`` steps after the last."""
        group = self.param_groups[0]
        taken, period = group["snapshot_step"], group["period"]
        return taken is None or (period is not None and group["step"] - taken >= period)

    @contextmanager
    def take_snapshot(self) -> Iterator[None]:
        """Keep the current point, and the sum of the gradients that the block computes.

        Their sum must be the *mean* gradient of this worker's data: weight each minibatch by its share.
        ``.grad`` is put back at the end; if the block raises, the old snapshot stays.

        Raises:
            RuntimeError: a gradient is not finite; the old snapshot stays.
        """
        with gathered_gradients(trained_parameters(self)) as sums:
            yield
        check_finite(sums, self, "take_snapshot()")
        self.keep_snapshot(sums)
        for group in self.param_groups:
            group["snapshot_step"] = group["step"]

    def keep_snapshot(self, gradients: dict[Tensor, Tensor]) -> None:
        """Keep a full gradient and the point where it was computed."""
        for parameter in trained_parameters(self):
            gradient = gradients[parameter] if parameter in gradients else torch.zeros_like(parameter)
            self.state[parameter][FULL_GRADIENT] = gradient.to(state_dtype(gradient.dtype))
            self.state[parameter][self.anchors[SNAPSHOT]] = parameter.detach().clone()

    @override
    def evaluate(self, closure: Callable[[], Any] | None) -> Any:
        if self.snapshot_due:
            raise RuntimeError(
                f"{type(self).__name__} needs a new snapshot before this step (the first one, or one every "
                "`period` steps): compute the full gradient inside `with optimizer.take_snapshot():`; under "
                "Lightning add lightning_signvr.callbacks.SnapshotGradient() to the Trainer's callbacks"
            )
        return super().evaluate(closure)

    @override
    def needs(self, name: str, group: dict[str, Any]) -> bool:
        return name != PREVIOUS or group.get("beta", 1.0) < 1
