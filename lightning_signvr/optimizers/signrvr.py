"""SignRVR and SignRVM: variance-reduced signs with random reshuffling."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import override

from lightning_signvr.estimators import Momentum, Svrg
from lightning_signvr.optimizers.checks import check_fraction
from lightning_signvr.optimizers.signsvrg import SignSVRG
from lightning_signvr.optimizers.snapshot import SnapshotOptimizer
from lightning_signvr.voting import MajorityVote


class SignRVR(SignSVRG):
    """:class:`SignSVRG` on reshuffled data with a snapshot per epoch.

    Qin, Liu, Xu, "Convergence of sign-based random reshuffling algorithms" (2023, arXiv 2310.15976; its
    abstract was read, the loop is recalled). The method is SignSVRG's; what differs is the sampling:
    shuffle the data once per epoch, draw without replacement, and take the snapshot when an epoch
    begins. Several workers vote (dist-SignRVR).

    Rate: ``O(log(nT) / sqrt(nT) + log(nT) sqrt(n) / sqrt(T))`` for n samples and T epochs.

    Costs, arguments and errors: as :class:`SignSVRG`.
    """


class SignRVM(SnapshotOptimizer):
    """:class:`SignRVR` with momentum: ``m <- momentum * m + (1 - momentum) * h``, and the sign of ``m``.

    Qin, Liu, Xu (2023, arXiv 2310.15976; the loop is recalled). Same rate as SignRVR. Several workers
    vote on the signs of their own ``m`` (dist-SignRVM).

    Per parameter: 1 bit up, 1 bit down; three copies of state (snapshot, full gradient, ``m``); two
    gradients per step and a pass over the data per epoch.

    Args:
        momentum: weight of the old average, in [0, 1).
        params, lr, period, weight_decay, maximize, vote: as for :class:`SignSVRG`.

    Raises:
        ValueError, TypeError, RuntimeError: as :class:`SignSVRG`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        momentum: float = 0.9,
        period: int | None = None,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        vote: MajorityVote | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "period": period,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults, Svrg(then=Momentum()), vote)

    @override
    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        check_fraction("momentum", group["momentum"])
