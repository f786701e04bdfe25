"""What the integrations have in common: optimizers, their votes, loss scaling."""

from __future__ import annotations

import atexit
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch.optim import Optimizer

from lightning_signvr.amp import SharedGradScaler
from lightning_signvr.optimizers import SignOptimizer, vote_gradients
from lightning_signvr.optimizers.rank_states import own_rank_state, with_rank_states
from lightning_signvr.optimizers.resizing import OnResize
from lightning_signvr.voting import LocalVote, MajorityVote

log = logging.getLogger(__name__)

_VOTE_STATE = "sign_vote"


class Connection:
    """An optimizer and the vote that it follows.

    A sign optimizer without a vote of its own gets one by the strategy's rules; any other steps on voted
    gradients, until :meth:`close`.

    Args:
        optimizer: the optimizer itself, no wrapper.
        rules: arguments of the vote but its group.
        announce: whether to say that another optimizer steps on signs.
        on_resize: what to do with a checkpoint of another number of workers.

    Attributes:
        vote: what it follows.

    Raises:
        TypeError: an optimizer that cannot follow a vote (LBFGS).
        ValueError: an optimizer with a LocalVote, of several workers.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        rules: Mapping[str, Any],
        announce: bool,
        on_resize: OnResize = "error",
    ) -> None:
        self.optimizer, self.on_resize = optimizer, on_resize
        self._hook = None
        if isinstance(optimizer, SignOptimizer):
            if optimizer.vote_is_default:
                optimizer.vote = optimizer.vote_class(**rules)
            self.vote = optimizer.vote
            self._check_not_local()
            return
        self.vote = MajorityVote(**rules)
        self._hook = vote_gradients(optimizer, self.vote)
        if announce:
            log.warning(
                "sign_vote: %s is not a sign optimizer; it steps on the majority sign (-1, 0 or +1) of the "
                "workers' gradients. For momentum before the vote use lightning_signvr.Signum.",
                type(optimizer).__name__,
            )

    def _check_not_local(self) -> None:
        if isinstance(self.vote, LocalVote) and _place()[1] > 1:
            raise ValueError(
                f"{type(self.optimizer).__name__} has a LocalVote, and under sign_vote gradients are not "
                "averaged, so that the workers would part: leave out `vote`, or do without sign_vote, where "
                "gradients are averaged (DDP)"
            )

    def overlap(self, why_not: str | None, announce: bool) -> None:
        """Begin votes in backward, or say why not; a collective of all workers.

        Args:
            why_not: what stands against it outside of the optimizer; None for nothing.
            announce: whether to say what is done.
        """
        if why_not is None and not isinstance(self.optimizer, SignOptimizer):
            why_not = "it is not a sign optimizer"
        if why_not is None and isinstance(self.optimizer, SignOptimizer):
            why_not = self.optimizer.why_not_overlap
            if why_not is None:
                self.optimizer.overlap()
        if announce:
            name = type(self.optimizer).__name__
            if why_not is None:
                log.info("sign_vote: the votes of %s begin in backward", name)
            else:
                log.warning("sign_vote: overlap is off for %s: %s", name, why_not)

    def no_overlap(self) -> AbstractContextManager[None]:
        """In the block backward passes begin no vote."""
        overlapped = getattr(self.optimizer, "overlapped", None)
        return nullcontext() if overlapped is None else overlapped.paused()

    def close(self) -> None:
        """End the votes of another optimizer, which is the user's own again, and votes in backward."""
        if self._hook is not None:
            self._hook.remove()
        if isinstance(self.optimizer, SignOptimizer) and self.optimizer.overlapped is not None:
            self.optimizer.overlapped.close()
            self.optimizer.overlapped = None

    def complete(self, state: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """For a checkpoint: ``state``, of this worker, with what the others have; a collective."""
        if isinstance(self.optimizer, SignOptimizer):
            return with_rank_states(state, device)
        return {**state, _VOTE_STATE: {"step": self.vote.step}}

    def own(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """From a checkpoint: this worker's part of a complete state, for ``load_state_dict``."""
        own = dict(state)
        self.vote.step = own.pop(_VOTE_STATE, {"step": self.vote.step})["step"]
        if not isinstance(self.optimizer, SignOptimizer):
            return own
        return own_rank_state(own, *_place(), self.on_resize)


def unwrapped(optimizer: Any) -> Any:
    """The optimizer that Lightning or Fabric has wrapped, or the optimizer itself."""
    return getattr(optimizer, "_optimizer", optimizer)


def _place() -> tuple[int, int]:
    """This process' rank and the number of ranks."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def share_overflows(precision: Any, nonfinite_limit: int | None) -> None:
    """Make the workers agree on which steps of ``precision="16-mixed"`` to skip."""
    scaler = getattr(precision, "scaler", None)
    if scaler is not None and not isinstance(scaler, SharedGradScaler):  # unscales at anchors too
        precision.scaler = SharedGradScaler.like(scaler, nonfinite_limit=nonfinite_limit)


@cache
def destroy_process_group_at_exit() -> None:
    """Lightning does so for nccl alone; gloo's threads may abort a process that ends with a live group."""
    atexit.register(lambda: dist.destroy_process_group() if dist.is_initialized() else None)
