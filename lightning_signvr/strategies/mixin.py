"""The strategy itself, once for both Lightning namespaces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.distributed.constants import default_pg_timeout
from torch.optim import Optimizer
from typing_extensions import override

from lightning_signvr.connecting import Connection, destroy_process_group_at_exit, unwrapped
from lightning_signvr.module_state import average_buffers, broadcast_state
from lightning_signvr.optimizers.resizing import OnResize
from lightning_signvr.strategies.options import VotingOptions
from lightning_signvr.strategies.registering import register
from lightning_signvr.strategies.replaying import ReplayMixin
from lightning_signvr.strategies.sharded import StateDictType
from lightning_signvr.voting import MajorityVote, Nonfinite, TieRule, Topology, Voters, ZeroRule
from lightning_signvr.voting.failures import explained

if TYPE_CHECKING:
    from lightning.fabric.plugins import ClusterEnvironment
    from lightning.pytorch import Trainer
    from lightning.pytorch.accelerators import Accelerator
    from lightning.pytorch.plugins import CheckpointIO, Precision


class SignVoteMixin(VotingOptions, ReplayMixin):
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
    * SIGTERM to any worker, or Slurm's signal to requeue, stops all after the same step.

    Args:
        accelerator, parallel_devices, cluster_environment, checkpoint_io, precision_plugin,
            process_group_backend, timeout, start_method: as for Lightning's ``DDPStrategy``.
        ties, zeros, seed, topology, bucket_parameters, voters, workers_per_node, nonfinite, nonfinite_limit,
            verify: of the vote, see :class:`~lightning_signvr.voting.MajorityVote`; used for every optimizer
            that was not given a vote of its own.
        overlap: whether votes begin in backward, as gradients become ready. The outcome is the same. Where it
            would be unsound it stays off, and the log says why: methods with two gradients per step
            or scaled signs, gradient clipping, loss scaling, manual optimization.
        on_resize: what to do on resuming a checkpoint of another number of workers. ``"error"``: raise.
            ``"mean"``: every worker starts with the mean of the saved optimizer states, see
            :func:`~lightning_signvr.optimizers.resizing.merged`; ``"reset"``: with none. Parameters and the
            count of steps are kept.
        state_dict_type: ``"full"``: a checkpoint is one file, for which rank 0 gathers all workers' states.
            ``"sharded"``: a folder on a disk that all workers share, to which each writes its own state;
            see :mod:`~lightning_signvr.sharded_checkpoints`. Both are read, whatever is chosen.

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
        topology: Topology = "auto",
        bucket_parameters: int | None = None,
        voters: Voters = "worker",
        workers_per_node: int | None = None,
        nonfinite: Nonfinite = "abstain",
        nonfinite_limit: int | None = 50,
        verify: bool = False,
        overlap: bool = False,
        on_resize: OnResize = "error",
        state_dict_type: StateDictType = "full",
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
        self._choose(
            ties=ties,
            zeros=zeros,
            seed=seed,
            topology=topology,
            bucket_parameters=bucket_parameters,
            voters=voters,
            workers_per_node=workers_per_node,
            nonfinite=nonfinite,
            nonfinite_limit=nonfinite_limit,
            verify=verify,
            overlap=overlap,
            on_resize=on_resize,
            state_dict_type=state_dict_type,
        )
        self.nonfinite_limit = nonfinite_limit
        self._connections: list[Connection] = []

    def __repr__(self) -> str:
        # Lightning prints this where it refuses a strategy, which is where the remedy is needed
        return (
            f"<SignVoteStrategy for Trainers of {self.namespace}; in other Trainers use "
            'strategy="sign_vote", which picks the right one>'
        )

    @property
    def votes(self) -> list[MajorityVote]:
        """The vote of each optimizer, in the order of ``configure_optimizers``."""
        return [connection.vote for connection in self._connections]

    # -- set-up -----------------------------------------------------------------------------------

    @override
    def setup_environment(self) -> None:
        self._check_checkpoint_io()
        super().setup_environment()
        destroy_process_group_at_exit()

    @override
    def configure_ddp(self) -> None:
        """Instead of wrapping the module in DDP: same state everywhere, gradients stay local."""
        assert self.model is not None
        broadcast_state(self.model)

    @override
    def setup_optimizers(self, trainer: Trainer) -> None:
        super().setup_optimizers(trainer)
        self._disconnect()
        self._connections = [
            Connection(optimizer, self._rules, self.is_global_zero, self._on_resize)
            for optimizer in self.optimizers
        ]
        if self._overlap:
            for connection in self._connections:
                connection.overlap(self._why_not_overlap(trainer), announce=self.is_global_zero)

    def _why_not_overlap(self, trainer: Trainer) -> str | None:
        if not trainer.lightning_module.automatic_optimization:
            return "manual optimization may run backward several times before a step"
        if trainer.gradient_clip_val:
            return f"gradient_clip_val={trainer.gradient_clip_val} changes gradients after backward"
        if getattr(self.precision_plugin, "scaler", None) is not None:
            return f'precision="{trainer.precision}" unscales gradients after backward'
        return None

    @contextmanager
    @override
    def block_backward_sync(self) -> Iterator[None]:
        """For the microbatches of an accumulated step but the last: votes wait for that one."""
        with ExitStack() as stack:
            for connection in self._connections:
                stack.enter_context(connection.no_overlap())
            yield

    def _disconnect(self) -> None:
        # the votes stay where they can be looked at; the optimizers may be fitted again
        for connection in self._connections:
            connection.close()

    @override
    def teardown(self) -> None:
        self._disconnect()
        super().teardown()

    @override
    def barrier(self, *args: Any, **kwargs: Any) -> None:
        with explained("a barrier", None):
            super().barrier(*args, **kwargs)

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
        """The optimizer's state; of a sign optimizer with the states of all workers (a collective).

        With ``state_dict_type="sharded"`` it is this worker's alone.
        """
        optimizer = unwrapped(optimizer)
        state: dict[str, Any] = dict(super().optimizer_state(optimizer))
        return self._state_to_save(self._connections[self.optimizers.index(optimizer)], state)

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        if self._state_dict_type == "full":
            with self._room_for_a_file(filepath):
                super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        states = zip(self._connections, checkpoint.get("optimizer_states", ()), strict=False)
        named = {str(number): both for number, both in enumerate(states)}
        self._write_folder(filepath, checkpoint, named, storage_options)

    @override
    def load_checkpoint(self, checkpoint_path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return super().load_checkpoint(self._file_to_read(checkpoint_path), *args, **kwargs)

    @override
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        if self.precision_plugin.precision == "64-true":
            self.lightning_module.double()  # Lightning does it later: float64 would have been rounded
        super().load_model_state_dict(checkpoint, strict=strict)

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        states = self._own_states(self._connections, checkpoint["optimizer_states"])
        super().load_optimizer_state_dict({**checkpoint, "optimizer_states": states})

    # -- registry ---------------------------------------------------------------------------------

    @classmethod
    @override
    def register_strategies(cls, strategy_registry: Any) -> None:
        register(cls, strategy_registry)
