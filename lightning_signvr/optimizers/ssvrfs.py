"""SSVR-FS: variance-reduced signs for finite sums."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import override

from lightning_signvr.estimators import PREVIOUS, SNAPSHOT, StormSvrg
from lightning_signvr.optimizers.checks import check_weight
from lightning_signvr.optimizers.snapshot import SnapshotOptimizer
from lightning_signvr.voting import MajorityVote


class SSVRFS(SnapshotOptimizer):
    """``v <- (1 - beta) v + beta h + (1 - beta) (g - g^-)`` with ``h = g - g^s + F``; then as SSVR.

    Jiang, Yang, Yang, Zhang (NeurIPS 2024, arXiv 2406.00489), the finite-sum variant. The form of the
    estimator is recalled from the same group's other finite-sum methods; with it the published rate is
    reproduced by algebra. ``g``, ``g^-`` and ``g^s`` are the gradients of the same samples at ``x_t``,
    ``x_{t-1}`` and the snapshot ``s``, and ``F`` is the full gradient at ``s``. ``v_1 = F``.

    Rate (one worker): ``E||grad f||_1 = O(m^{1/4} d^{1/2} T^{-1/2})`` for m functions, with ``period = m``,
    ``beta = 1 / m``, ``lr = m^{-1/4} d^{-1/2} T^{-1/2}``. With minibatches take the steps of an epoch for m.

    Per parameter: 1 bit up, 1 bit down; four copies of state (``v``, ``F``, ``s``, ``x_{t-1}``); three
    gradients per step and a pass over the data per period.

    Args:
        params: parameters or groups.
        lr: step of each coordinate, float or one-element tensor, at least 0.
        beta: weight of the fresh estimate, in (0, 1]. 1 is SignSVRG.
        period: steps between snapshots, at least 1; None where ``take_snapshot`` is called as you like
            (Lightning's callback: once per epoch).
        weight_decay: decoupled, at least 0.
        previous_iterate: how ``x_{t-1}`` is kept. ``"copy"``: as it is. ``"rebuild"``: as the last vote, 1
            bit per parameter, from which it is computed when needed, but for rounding; in 16-bit parameters
            that is as much as a step, so use it for float32.
        maximize: move uphill.
        vote: None for :class:`~lightning_signvr.voting.MajorityVote` with its defaults.

    Raises:
        ValueError, TypeError: see :class:`SignOptimizer`.
        RuntimeError: in ``step()``: no snapshot, or a gradient at an anchor is missing.

    Example:
        >>> optimizer = SSVRFS([torch.nn.Parameter(torch.zeros(3))], lr=0.01, beta=0.1, period=50)
        >>> optimizer.snapshot_due
        True
    """

    anchors = {PREVIOUS: "previous_iterate", SNAPSHOT: "snapshot"}  # noqa: RUF012

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        beta: float = 0.1,
        period: int | None = None,
        weight_decay: float = 0.0,
        *,
        previous_iterate: Literal["copy", "rebuild"] = "copy",
        maximize: bool = False,
        vote: MajorityVote | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "beta": beta,
            "period": period,
            "weight_decay": weight_decay,
            "previous_iterate": previous_iterate,
            "maximize": maximize,
        }
        super().__init__(params, defaults, StormSvrg(), vote)

    @override
    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        check_weight("beta", group["beta"], zero=False)
