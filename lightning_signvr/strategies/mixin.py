"""The strategy itself, once for both Lightning namespaces."""

from __future__ import annotations

import atexit
import logging
from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lightning_signvr.optimizers import SignOptimizer, vote_gradients
from lightning_signvr.optimizers.rank_states import own_rank_state, with_rank_states
from lightning_signvr.strategies.module_state import average_buffers, broadcast_state
from lightning_signvr.strategies.replaying import ReplayMixin
from lightning_signvr.voting import MajorityVote, TieRule, ZeroRule

if TYPE_CHECKING:
    from lightning.fabric.plugins import ClusterEnvironment
    from lightning.pytorch import Trainer
    from lightning.pytorch.accelerators import Accelerator
    from lightning.pytorch.plugins import CheckpointIO, Precision

log = logging.getLogger(__name__)

REGISTERED_NAMES: Mapping[str, str] = {
    "sign_vote": "popen",
    "sign_vote_spawn": "spawn",
    "sign_vote_fork": "fork",
    "sign_vote_notebook": "fork",
}
_VOTE_STATE = "sign_vote"


@cache
def _destroy_process_group_at_exit() -> None:
    # Lightning does so for nccl alone; gloo's threads may abort a process that ends with a live group
    atexit.register(lambda: dist.destroy_process_group() if dist.is_initialized() else None)


class SignVoteMixin(ReplayMixin):
    """Train data-parallel with one bit per parameter in each direction.

    Like DDP, each process trains a replica of the model on its own part of the data. Unlike DDP,
    gradients are never averaged: ``.grad`` is each worker's own gradient, so that clipping, logging and
    loss scaling see what they expect, and ``optimizer.step()`` exchanges packed signs and moves all
    replicas alike by their majority.

    * An optimizer of this library votes on its own estimate. Any other torch optimizer steps on the
      voted signs of the gradients; that is said once in the log.
    * The module is not wrapped; rank 0's initial state is broadcast.
    * Gradients are clipped by each worker's own norm, before the vote.
    * Float buffers (BatchNorm) are averaged before validation and checkpoints and after training.
    * A checkpoint holds every worker's optimizer state, and each worker resumes with its own.
    * A variance-reduced optimizer gets its second gradient by itself: each microbatch runs again at the
      previous iterate, with the same dropout masks, and leaves no other trace.
    * With ``precision="16-mixed"`` the workers agree on which steps to skip.

    Args:
        accelerator, parallel_devices, cluster_environment, checkpoint_io, precision_plugin,
            process_group_backend, timeout, start_method: as for Lightning's ``DDPStrategy``.
        ties, zeros, seed: of the vote, see :class:`~lightning_signvr.voting.MajorityVote`; used for
            every optimizer that was not given a vote of its own.

    Raises:
        ValueError: an unknown rule or a seed out of range.
        TypeError: an optimizer that cannot follow a vote (LBFGS).
    """

    # the registered name's namespace, for messages
    namespace = ""

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
        start_method: Literal["popen", "spawn", "fork", "forkserver"] = "popen",
        ties: TieRule = "random",
        zeros: ZeroRule = "abstain",
        seed: int = 0,
    ) -> None:
        super().__init__(
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            checkpoint_io=checkpoint_io,
            precision_plugin=precision_plugin,
            process_group_backend=process_group_backend,
            start_method=start_method,
            timeout=timeout,
        )
        MajorityVote(ties=ties, zeros=zeros, seed=seed)  # raises on bad rules before anything starts
        self._rules: dict[str, Any] = {"ties": ties, "zeros": zeros, "seed": seed}
        self._votes: list[MajorityVote] = []
        self._hooks: list[RemovableHandle] = []

    def __repr__(self) -> str:
        # Lightning prints this where it refuses a strategy, which is where the remedy is needed
        return (
            f"<SignVoteStrategy for Trainers of {self.namespace}; in other Trainers use "
            'strategy="sign_vote", which picks the right one>'
        )

    @property
    def votes(self) -> list[MajorityVote]:
        """The vote of each optimizer, in the order of ``configure_optimizers``."""
        return self._votes

    # -- set-up -----------------------------------------------------------------------------------

    @override
    def setup_environment(self) -> None:
        super().setup_environment()
        _destroy_process_group_at_exit()

    @override
    def configure_ddp(self) -> None:
        """Instead of wrapping the module in DDP: same state everywhere, gradients stay local."""
        assert self.model is not None
        broadcast_state(self.model)

    @override
    def setup_optimizers(self, trainer: Trainer) -> None:
        super().setup_optimizers(trainer)
        self._remove_hooks()
        self._votes = [self._connect(optimizer) for optimizer in self.optimizers]

    def _connect(self, optimizer: Optimizer) -> MajorityVote:
        """Make ``optimizer`` follow a vote; which."""
        if isinstance(optimizer, SignOptimizer):
            if optimizer.vote_is_default:
                optimizer.vote = optimizer.vote_class(**self._rules)
            return optimizer.vote
        vote = MajorityVote(**self._rules)
        self._hooks.append(vote_gradients(optimizer, vote))
        if self.is_global_zero:
            log.warning(
                "sign_vote: %s is not a sign optimizer; it steps on the majority sign (-1, 0 or +1) of the "
                "workers' gradients. For momentum before the vote use lightning_signvr.Signum.",
                type(optimizer).__name__,
            )
        return vote

    def _remove_hooks(self) -> None:
        """End the votes of other optimizers, which are the user's own again (and may be fitted again)."""
        while self._hooks:
            self._hooks.pop().remove()

    @override
    def teardown(self) -> None:
        self._remove_hooks()
        super().teardown()

    # -- buffers ----------------------------------------------------------------------------------

    def _average_buffers(self) -> None:
        if self.lightning_module is not None:
            average_buffers(self.lightning_module)

    @override
    def on_validation_start(self) -> None:
        self._average_buffers()
        super().on_validation_start()

    @override
    def on_train_end(self) -> None:
        self._average_buffers()
        super().on_train_end()

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        self._average_buffers()
        return super().lightning_module_state_dict()

    # -- checkpoints ------------------------------------------------------------------------------

    @override
    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's state; of a sign optimizer with the states of all workers (a collective)."""
        optimizer = getattr(optimizer, "_optimizer", optimizer)
        state: dict[str, Any] = dict(super().optimizer_state(optimizer))
        if isinstance(optimizer, SignOptimizer):
            return with_rank_states(state, self.root_device)
        vote = self._votes[self.optimizers.index(optimizer)]
        return {**state, _VOTE_STATE: {"step": vote.step}}

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        states = []
        for optimizer, vote, saved in zip(
            self.optimizers, self._votes, checkpoint["optimizer_states"], strict=True
        ):
            state = dict(saved)
            vote.step = state.pop(_VOTE_STATE, {"step": vote.step})["step"]
            if isinstance(optimizer, SignOptimizer):
                workers = dist.get_world_size() if dist.is_initialized() else 1
                state = own_rank_state(state, self.global_rank, workers)
            states.append(state)
        super().load_optimizer_state_dict({**checkpoint, "optimizer_states": states})

    # -- registry ---------------------------------------------------------------------------------

    @classmethod
    @override
    def register_strategies(cls, strategy_registry: Any) -> None:
        for name, start_method in REGISTERED_NAMES.items():
            if name not in strategy_registry:
                strategy_registry.register(
                    name,
                    cls,
                    description=f"Majority vote of signs, 1 bit per parameter, started by {start_method!r}",
                    start_method=start_method,
                )
