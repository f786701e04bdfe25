"""DVR-Sign-FS and DVR-Q-FS: distributed variance reduction for finite sums."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import override

from lightning_signvr.estimators import PREVIOUS, Increment
from lightning_signvr.optimizers.dvr import DVROptimizer, ScaledSignAnswer
from lightning_signvr.optimizers.snapshot import SnapshotOptimizer
from lightning_signvr.voting import ScaledMeanVote


class DVRSignFS(SnapshotOptimizer, DVROptimizer):
    """``z = mean_j F^j`` every ``period`` steps, else ``z <- z + mean_j Q(y^j)``; ``x <- x - lr * sign(z)``.

    Jiang, Li, Zhang, "Revisiting Distributed Sign-Based Variance Reduction" (arXiv 2609.18656, section 4),
    the finite-sum form of :class:`DVRSign`. ``F^j`` is the gradient of worker j over all of its data, which
    ``take_snapshot`` takes; the next step sends it to the owners in full precision and takes it in the place
    of its minibatch's gradient, which it does not need. In the other steps the worker sends the scaled sign
    of ``y^j = g^j - g^{j-}``, where ``g`` and ``g^-`` are the gradients of the same samples at ``x_t`` and
    ``x_{t-1}``. There is no ``beta``. The step also decays the weights, ``- lr * weight_decay * x``.

    All workers must take their snapshots in the same steps, which they do with the same ``period``; if one
    does not, the step is an error on all of them.

    Cost, also where the workers' data differ: ``O(M + d sqrt(a M) / eps^2)`` gradients of single samples, of
    which all workers together have M, until ``E||grad f||_1 <= eps``; ``a`` is the size of the largest
    tensor. That is for batches of one sample, ``period = m`` (samples per worker) and ``lr = eps / (2 L J)``
    with ``J = d / 2 + 2 d sqrt(a (period - 1) / n)`` for n workers; gradients need no bound. With minibatches
    take the steps of an epoch for m. Large tensors make ``a`` large, and the estimate noisy between
    snapshots; a shorter period helps. It is not robust to hostile workers: a large scale outvotes the others,
    and a snapshot is a mean.

    Per parameter: 1 bit up and a float32 per tensor, 1 bit down, and 32 more bits up after a snapshot; state:
    one copy (``x_{t-1}``), 1/n of a copy (``z``), and another copy from a snapshot to the next step (``F``);
    two gradients per step, given as to :class:`AnchoredOptimizer`, and a pass over the data per period.

    Args:
        params: parameters or groups.
        lr: step of each coordinate, float or one-element tensor, at least 0; must decay to reach a minimum.
        period: steps between snapshots, at least 1; None where ``take_snapshot`` is called as you like
            (Lightning's callback: once per epoch).
        weight_decay: decoupled, at least 0.
        previous_iterate: how ``x_{t-1}`` is kept. ``"copy"``: as it is. ``"rebuild"``: as the last vote, 1
            bit per parameter, from which it is computed when needed, but for rounding; in 16-bit parameters
            that is as much as a step, so use it for float32.
        maximize: move uphill.
        vote: None for :class:`~lightning_signvr.voting.ScaledMeanVote` with its defaults.

    Raises:
        ValueError, TypeError: see :class:`SignOptimizer`.
        RuntimeError: in ``step()``: there is no snapshot, or not on all workers; the second gradient is
            missing; a gradient is not finite; the state is of other workers.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> data = torch.tensor([1.0, 2.0, 6.0])
        >>> optimizer = DVRSignFS([weight], lr=0.5, period=3)
        >>> for step in range(12):
        ...     if optimizer.snapshot_due:
        ...         with optimizer.take_snapshot():
        ...             (weight - data).square().mean().backward()
        ...     def closure():
        ...         optimizer.zero_grad()
        ...         (weight - data[step % 3]).square().sum().backward()
        ...     optimizer.step(closure)
        >>> weight.item()  # the mean, where signSGD would stop at the median
        3.0
    """

    anchors = {PREVIOUS: "previous_iterate"}  # noqa: RUF012

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        period: int | None = None,
        weight_decay: float = 0.0,
        *,
        previous_iterate: Literal["copy", "rebuild"] = "copy",
        maximize: bool = False,
        vote: ScaledMeanVote | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "period": period,
            "weight_decay": weight_decay,
            "previous_iterate": previous_iterate,
            "maximize": maximize,
        }
        super().__init__(params, defaults, Increment(), vote)

    @override
    def needs(self, name: str, group: dict[str, Any]) -> bool:
        return True

    @override
    def keep_snapshot(self, gradients: dict[Tensor, Tensor]) -> None:
        self.give_gradients(gradients)

    @override
    def gradient_is_given(self) -> bool:
        group = self.param_groups[0]
        return bool(group["snapshot_step"] == group["step"])

    @override
    def serve(self, mean: Tensor, kept: Tensor, group: dict[str, Any]) -> Tensor:
        return kept.copy_(mean) if self._given else kept.add_(mean)


class DVRQFS(ScaledSignAnswer, DVRSignFS):
    """As :class:`DVRSignFS`, but ``x <- x - lr * (Q(z) + weight_decay * x)``.

    The finite-sum form of :class:`~lightning_signvr.optimizers.DVRQ` (arXiv 2609.18656, section 4): the owner
    answers with random signs and their scale, whose mean is ``z``.

    **The learning rate is SGD's**: on average a step is ``lr * z``, and it shrinks with the gradient, so that
    a constant rate does; in each step every coordinate of a tensor moves as far as its largest one would.

    Cost: ``O(M + a sqrt(M) / eps^2)`` gradients in all until ``E||grad f||_2 <= eps``, for batches of one
    sample, ``period = m`` and ``lr = 1 / (2 L a (1 + sqrt((period - 1) / n)))``; the letters are those of
    :class:`DVRSignFS`, and so are the caveats. It is not robust to hostile workers: a large scale outvotes
    the others, and a snapshot is a mean.

    Per parameter: as :class:`DVRSignFS`, and a float32 per tensor and owner down. ``x_{t-1}`` is always kept
    as it is.

    Args:
        params: parameters or groups.
        lr: SGD's learning rate, float or one-element tensor, at least 0.
        period, weight_decay, maximize, vote: as for :class:`DVRSignFS`.

    Raises:
        ValueError, TypeError, RuntimeError: as for :class:`DVRSignFS`.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = DVRQFS([weight], lr=0.25, period=3)
        >>> with optimizer.take_snapshot():
        ...     (weight - 4).square().sum().backward()
        >>> optimizer.step()  # the snapshot's gradient, -8, is all that this step needs
        >>> weight.item()
        2.0
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        period: int | None = None,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        vote: ScaledMeanVote | None = None,
    ) -> None:
        super().__init__(params, lr, period, weight_decay, maximize=maximize, vote=vote)
