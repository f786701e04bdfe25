"""Norms of the gradients and of what the optimizers make of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Trainer
from torch.optim import Optimizer
from typing_extensions import override

from lightning_signvr.callbacks.watching import Monitor, layers_of, numbered
from lightning_signvr.connecting import unwrapped
from lightning_signvr.metrics.gradient_norm import total_norm
from lightning_signvr.optimizers import SignOptimizer
from lightning_signvr.optimizers.gathering import trained_parameters

NORMS = {"l1": 1.0, "l2": 2.0, "linf": math.inf}


class GradientNormMonitor(Monitor):
    """Log norms of each worker's own gradient, unscaled and before clipping, as means over the workers.

    ==============================  ==================================================================
    key                             value
    ==============================  ==================================================================
    ``grad_norm/local``             l2 norm
    ``grad_norm/local_l1``          l1 norm: what the theorems of sign methods bound
    ``grad_norm/local_linf``        largest magnitude
    ``grad_norm/estimate``          l2 norm of the estimate whose sign is voted on, for our optimizers
    ``grad_norm/layer/<name>``      l2 norm of one layer, with ``per_layer``
    ==============================  ==================================================================

    With several optimizers the number of the optimizer is appended. Works with any strategy.

    Args:
        norms: which of ``"l1"``, ``"l2"``, ``"linf"``.
        per_layer: whether each layer's norm is logged too; a layer is a module with parameters of its own.

    Raises:
        ValueError: an unknown norm.

    Example:
        >>> trainer = Trainer(callbacks=[GradientNormMonitor(per_layer=True)])  # doctest: +SKIP
    """

    def __init__(self, norms: Sequence[str] = ("l1", "l2", "linf"), per_layer: bool = False) -> None:
        for name in norms:
            if name not in NORMS:
                raise ValueError(f"norms must be among {', '.join(map(repr, NORMS))}, got {name!r}")
        self.norms = tuple(norms)
        self.per_layer = per_layer
        self._values: dict[str, float | None] = {}
        self._squares: dict[str, list[float]] = {}  # of the estimates of this step

    def _forget(self, trainer: Trainer) -> None:
        """Unknown, under the keys that all workers have."""
        self._values = {}
        count = len(trainer.optimizers)
        for number, optimizer in enumerate(trainer.optimizers):
            keys = [_key(name) for name in self.norms]
            if isinstance(unwrapped(optimizer), SignOptimizer):
                keys.append("grad_norm/estimate")
            if self.per_layer:
                layers = layers_of(unwrapped(optimizer), trainer.lightning_module)
                keys += [f"grad_norm/layer/{name}" for name in layers]
            self._values.update({numbered(key, number, count): None for key in keys})

    @override
    def before_step(self, trainer: Trainer, optimizer: Optimizer) -> None:
        if not self._values:
            self._forget(trainer)
        plain = [unwrapped(item) for item in trainer.optimizers]
        number, count = plain.index(optimizer), len(plain)
        gradients = [(i, p.grad) for i, p in enumerate(trained_parameters(optimizer)) if p.grad is not None]
        for name in {*self.norms, *(["l2"] if self.per_layer else [])}:
            own = {index: total_norm([gradient], NORMS[name]) for index, gradient in gradients}
            if name in self.norms:
                value = float(total_norm(own.values(), NORMS[name]))
                self._values[numbered(_key(name), number, count)] = value
            if self.per_layer and name == "l2":
                for layer, indices in layers_of(optimizer, trainer.lightning_module).items():
                    value = float(total_norm((own.get(index) for index in indices), 2))
                    self._values[numbered(f"grad_norm/layer/{layer}", number, count)] = value
        if isinstance(optimizer, SignOptimizer):
            squares = self._squares[numbered("grad_norm/estimate", number, count)] = []
            self.observe(optimizer, lambda _, estimate: squares.append(float(total_norm([estimate], 2)) ** 2))

    @override
    def of_this_worker(self, trainer: Trainer, outputs: Any) -> dict[str, float | None]:
        if not self._values:
            self._forget(trainer)  # no step was taken here
        self._values.update(
            {key: math.sqrt(sum(squares)) for key, squares in self._squares.items() if squares}
        )
        values, self._values, self._squares = self._values, {}, {}
        return values


def _key(name: str) -> str:
    return "grad_norm/local" if name == "l2" else f"grad_norm/local_{name}"
