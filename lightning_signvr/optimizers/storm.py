"""What the optimizers on STORM's estimate share: its hyper-parameters and its need of a second gradient."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from lightning_signvr.estimators import correction_now
from lightning_signvr.optimizers.checks import check_choice, check_count, check_weight
from lightning_signvr.optimizers.first_batch import FirstBatchOptimizer


class StormOptimizer(FirstBatchOptimizer):
    """An optimizer whose groups have ``beta``, ``correction``, ``correction_steps`` and ``previous``.

    See :class:`~lightning_signvr.estimators.Storm` for their meaning. Its estimate begins at the first
    gradient, or at that of :meth:`large_first_batch`.
    """

    @override
    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        check_weight("beta", group["beta"], zero=False)
        check_weight("correction", group["correction"])
        check_choice("previous", group["previous"], ("exact", "last_batch"))
        if group["correction_steps"] is not None:
            check_count("correction_steps", group["correction_steps"])

    @override
    def needs(self, name: str, group: dict[str, Any]) -> bool:
        return bool(group["previous"] == "exact" and correction_now(group) > 0 and group["beta"] < 1)
