"""Whether variance reduction reduces variance, measured while training."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_signvr.callbacks.watching import Monitor, numbered
from lightning_signvr.connecting import unwrapped
from lightning_signvr.estimators import PREVIOUS
from lightning_signvr.optimizers import AnchoredOptimizer, SignOptimizer
from lightning_signvr.optimizers.gathering import trained_parameters
from lightning_signvr.optimizers.stochastic import RandomizedSigns


class VarianceReductionMonitor(Monitor):
    """Log what the estimators and the randomized signs do to the gradients.

    ==========================================  ======================================================
    key                                         value
    ==========================================  ======================================================
    ``variance_reduction/gradient_cosine``      cosine between the gradients at ``x_t`` and ``x_{t-1}``, mean
                                                over the workers. Near 1 the correction works; near 0 it adds
                                                noise
    ``variance_reduction/variance_ratio``       variance of the estimate over the workers, divided by that of
                                                the raw gradient, each relative to its mean square: below 1
                                                the estimate is the quieter one
    ``variance_reduction/gradient_noise``       relative variance of the raw gradient over the workers
    ``variance_reduction/estimate_noise``       the same of the estimate
    ``sign_vote/clip_fraction``                 share of the coordinates beyond the radius of a stochastic
                                                sign, where it is biased
    ==========================================  ======================================================

    The variances are measured on ``samples`` coordinates, the same on all workers, through one all-reduce of
    16 bytes each on a step that logs; they need at least two workers. Where the workers' data differ, the
    differences of their gradients count as variance too. With several optimizers the number of the optimizer
    is appended.

    Args:
        samples: number of coordinates, at least 1.

    Raises:
        ValueError: fewer samples.

    Example:
        >>> trainer = Trainer(strategy="sign_vote", callbacks=[VarianceReductionMonitor()])  # doctest: +SKIP
    """

    def __init__(self, samples: int = 2048) -> None:
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        self.samples = samples
        self._seen: dict[int, _Step] = {}
        self._counted: dict[int, bool] = {}  # whether the optimizers counted before we asked

    @override
    def start(self, trainer: Trainer, module: LightningModule) -> None:
        super().start(trainer, module)
        self._seen = {}

    def _numbered(self, trainer: Trainer) -> list[tuple[int, SignOptimizer]]:
        plain = [unwrapped(item) for item in trainer.optimizers]
        return [(number, item) for number, item in enumerate(plain) if isinstance(item, SignOptimizer)]

    @override
    def before_step(self, trainer: Trainer, optimizer: Optimizer) -> None:
        for number, own in self._numbered(trainer):
            if own is optimizer:
                step = self._seen[number] = _Step(own, self.samples)
                self.observe(own, step.look)
                if isinstance(own, RandomizedSigns):
                    self._counted.setdefault(number, own.counts_clipping)
                    own.counts_clipping = True

    @override
    def of_this_worker(self, trainer: Trainer, outputs: Any) -> dict[str, float | None]:
        values: dict[str, float | None] = {}
        for number, optimizer in self._numbered(trainer):
            found: dict[str, float | None] = {}
            step = self._seen.get(number)
            if isinstance(optimizer, AnchoredOptimizer) and PREVIOUS in optimizer.anchors:
                found["variance_reduction/gradient_cosine"] = None if step is None else step.cosine
            if isinstance(optimizer, RandomizedSigns):
                fraction = None if step is None or not step.taken else optimizer.clip_fraction
                found["sign_vote/clip_fraction"] = None if fraction is None else float(fraction)
                optimizer.counts_clipping = self._counted.pop(number, optimizer.counts_clipping)
            values.update({numbered(k, number, len(trainer.optimizers)): v for k, v in found.items()})
        return values

    @override
    def of_all_workers(self, trainer: Trainer) -> dict[str, float]:
        values: dict[str, float] = {}
        for number, optimizer in self._numbered(trainer):
            found = self._variances(trainer, optimizer, self._seen.pop(number, None))
            values.update({numbered(k, number, len(trainer.optimizers)): v for k, v in found.items()})
        return values

    def _variances(self, trainer: Trainer, optimizer: SignOptimizer, step: _Step | None) -> dict[str, float]:
        workers = trainer.world_size
        if workers < 2:
            return {}
        device = trainer.strategy.root_device
        mine = (step or _Step(optimizer, self.samples)).sampled()
        sums = torch.stack([mine, mine.square()]).to(device)
        sums = trainer.strategy.reduce(sums, reduce_op="sum").cpu()
        means, squares = sums[0] / workers, sums[1] / workers
        variances = (squares - means.square()).sum(1) * workers / (workers - 1)
        gradient, estimate = (variances / squares.sum(1)).tolist()
        if not (math.isfinite(gradient) and math.isfinite(estimate) and gradient > 0):
            return {}
        return {
            "variance_reduction/gradient_noise": gradient,
            "variance_reduction/estimate_noise": estimate,
            "variance_reduction/variance_ratio": estimate / gradient,
        }


class _Step:
    """What one step shows of one optimizer."""

    def __init__(self, optimizer: SignOptimizer, samples: int) -> None:
        self._optimizer = optimizer
        parameters = trained_parameters(optimizer)
        total = sum(parameter.numel() for parameter in parameters)
        # every so many coordinates of all parameters in a row, counted from the first
        self._every = max(1, total // samples)
        self._places: dict[Tensor, tuple[int, int, int]] = {}
        start = self.size = 0
        for parameter in parameters:
            first = -start % self._every
            count = len(range(first, parameter.numel(), self._every))
            self._places[parameter] = (first, self.size, count)
            self.size += count
            start += parameter.numel()
        self._samples: list[tuple[int, Tensor]] = []
        self._products = torch.zeros(3, dtype=torch.float64)

    def look(self, parameter: Tensor, estimate: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None
        first, place, count = self._places[parameter]
        if count:
            pair = [each.reshape(-1)[first :: self._every].float() for each in (gradient, estimate)]
            self._samples.append((place, torch.stack(pair).cpu()))
        other = self._optimizer.gradients_elsewhere(parameter).get(PREVIOUS)
        if other is not None:
            a, b = gradient.reshape(-1).float(), other.reshape(-1).float()
            self._products += torch.stack([a.dot(b), a.dot(a), b.dot(b)]).cpu()

    @property
    def taken(self) -> bool:
        """Whether the step was taken: not where a loss scale made it skip."""
        return bool(self._samples)

    @property
    def cosine(self) -> float | None:
        product, first, second = self._products.tolist()
        return product / math.sqrt(first * second) if first * second > 0 else None

    def sampled(self) -> Tensor:
        """Gradient and estimate at the sampled coordinates, ``[2, size]``; 0 where there is no gradient."""
        both = torch.zeros(2, self.size)
        for place, pair in self._samples:
            both[:, place : place + pair.shape[1]] = pair
        return both
