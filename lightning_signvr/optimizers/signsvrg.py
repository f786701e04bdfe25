"""SignSVRG: the sign of variance-reduced gradients."""

from __future__ import annotations

from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_signvr.estimators import Svrg
from lightning_signvr.optimizers.snapshot import SnapshotOptimizer
from lightning_signvr.voting import MajorityVote


class SignSVRG(SnapshotOptimizer):
    """``h = g - g^s + F``; ``x <- x - lr * (vote(sign(h)) + weight_decay * x)``.

    Chzhen & Schechtman, "SignSVRG: fixing SignSGD via variance reduction" (2023, arXiv 2305.13187); its
    abstract was read, the details of the loop are recalled. ``s`` is a snapshot, refreshed every
    ``period`` steps, and ``F`` the full gradient there. Several workers vote on the signs of their own
    ``h``, as dist-SignRVR does.

    Rate (one worker, from the abstract): expected gradient norm ``O(1 / sqrt(T))`` for smooth nonconvex
    finite sums, ``O(1 / T)`` for convex ones.

    Per parameter: 1 bit up, 1 bit down; two copies of state (``s``, and ``F`` in float32 for 16-bit
    parameters); two gradients per step and a pass over the data per period.

    Args:
        params: parameters or groups.
        lr: step of each coordinate, float or one-element tensor, at least 0.
        period: steps between snapshots, at least 1; None where ``take_snapshot`` is called as you like
            (Lightning's callback: once per epoch).
        weight_decay: decoupled, at least 0.
        maximize: move uphill.
        vote: None for :class:`~lightning_signvr.voting.MajorityVote` with its defaults.

    Raises:
        ValueError, TypeError: see :class:`SignOptimizer`.
        RuntimeError: in ``step()``: no snapshot, or the gradient at the snapshot is missing.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> data = torch.tensor([1.0, 2.0, 6.0])
        >>> optimizer = SignSVRG([weight], lr=0.5, period=3)
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

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        period: int | None = None,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        vote: MajorityVote | None = None,
    ) -> None:
        defaults = {"lr": lr, "period": period, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults, Svrg(), vote)
