"""The strategy for Fabric, once for both Fabric namespaces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.constants import default_pg_timeout
from torch.optim import Optimizer
from typing_extensions import override

from lightning_signvr.amp import SharedGradScaler
from lightning_signvr.connecting import (
    Connection,
    destroy_process_group_at_exit,
    share_overflows,
)
from lightning_signvr.module_state import average_buffers, broadcast_state
from lightning_signvr.optimizers import AnchoredOptimizer
from lightning_signvr.optimizers.clipping import check_clips_by_value, clip_grad_norm_
from lightning_signvr.optimizers.resizing import OnResize
from lightning_signvr.replay import Replay, Surroundings
from lightning_signvr.strategies.options import VotingOptions
from lightning_signvr.strategies.registering import register
from lightning_signvr.strategies.sharded import StateDictType
from lightning_signvr.voting import MajorityVote, Nonfinite, TieRule, Topology, Voters, ZeroRule

if TYPE_CHECKING:
    from lightning.fabric.accelerators.accelerator import Accelerator
    from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment, Precision
    from lightning.fabric.strategies.ddp import DDPStrategy as _Base
else:
    _Base = object


class FabricSignVoteMixin(VotingOptions, _Base):
    """Train data-parallel with one bit per parameter in each direction, in a Fabric loop.

    Each process trains a replica on its own part of the data. ``fabric.backward`` leaves each worker's own
    gradient in ``.grad``, and ``optimizer.step()`` moves all replicas alike by the majority of their signs.

    * ``fabric.setup`` gives all workers rank 0's model, leaves it bare, and gives the optimizers their vote.
      Any torch optimizer but those of this library steps on voted signs; that is said once in the log.
    * ``fabric.no_backward_sync`` is allowed, and has nothing to do but with ``overlap=True``.
    * ``fabric.clip_gradients(max_norm=...)`` clips by each worker's own norm, before the vote.
    * ``fabric.save`` writes every worker's optimizer state and averages float buffers (BatchNorm) first;
      ``fabric.load`` gives each worker its own state.
    * With ``precision="16-mixed"`` the workers agree on which steps to skip.
    * For methods with two gradients per step use ``Replay(optimizer, model).backward(loss_of,
      fabric.backward)``, or ``optimizer.step(closure)``.

    Args:
        accelerator, parallel_devices, cluster_environment, checkpoint_io, precision,
            process_group_backend, timeout, start_method: as for Fabric's ``DDPStrategy``.
        ties, zeros, seed, topology, bucket_parameters, voters, workers_per_node, nonfinite, nonfinite_limit,
            verify: of the vote, see :class:`~lightning_signvr.voting.MajorityVote`; used for every optimizer
            that was not given a vote of its own.
        overlap: whether votes begin in backward, as gradients become ready. The outcome is the same. Where it
            would be unsound it stays off, and the log says why: methods with two gradients per step
            or scaled signs, loss scaling. Accumulate in ``fabric.no_backward_sync``, and clip no gradients.
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

    # the namespace, for messages
    namespace = ""

    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision: Precision | None = None,
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
            precision=precision,
            process_group_backend=process_group_backend,
            timeout=timeout,
            start_method=start_method,
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
        self._models: list[nn.Module] = []
        self._connections: list[Connection] = []
        self._saving = False
        # of neither namespace
        self._backward_sync_control = _NoOverlap(self._connections)  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"<SignVoteStrategy for Fabric of {self.namespace}; in others use "
            'strategy="sign_vote", which picks the right one>'
        )

    @property
    def votes(self) -> list[MajorityVote]:
        """The vote of each optimizer, in the order of their set-up."""
        return [connection.vote for connection in self._connections]

    # -- set-up -----------------------------------------------------------------------------------

    @override
    def setup_environment(self) -> None:
        self._check_checkpoint_io()
        super().setup_environment()
        destroy_process_group_at_exit()
        share_overflows(self.precision, self._rules["nonfinite_limit"])

    @override
    def setup_module(self, module: nn.Module) -> nn.Module:  # type: ignore[override]  # not wrapped in DDP
        """Instead of wrapping the module in DDP: same state everywhere, gradients stay local."""
        broadcast_state(module)
        self._models.append(module)
        return module

    @override
    def setup_optimizer(self, optimizer: Optimizer) -> Optimizer:
        optimizer = super().setup_optimizer(optimizer)
        if self._connection(optimizer) is None:
            connection = Connection(optimizer, self._rules, self.is_global_zero, self._on_resize)
            self._connections.append(connection)
            if self._overlap:
                scaled = getattr(self.precision, "scaler", None) is not None
                reason = "a gradient scaler unscales gradients after backward" if scaled else None
                connection.overlap(reason, announce=self.is_global_zero)
        if isinstance(optimizer, AnchoredOptimizer):
            optimizer.replays_closures = False  # done here, where the models are known
        return optimizer

    def _connection(self, optimizer: Any) -> Connection | None:
        return next((item for item in self._connections if item.optimizer is optimizer), None)

    @override
    def teardown(self) -> None:
        while self._connections:
            self._connections.pop().close()
        super().teardown()

    # -- steps ------------------------------------------------------------------------------------

    @override
    def optimizer_step(self, optimizer: Any, **kwargs: Any) -> Any:
        closure = kwargs.get("closure")
        if closure is not None and isinstance(optimizer, AnchoredOptimizer):
            kwargs["closure"] = self._twice(optimizer, closure)
        return super().optimizer_step(optimizer, **kwargs)

    def _twice(self, optimizer: AnchoredOptimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
        models = nn.ModuleList(self._models)

        def both() -> Any:
            before = Surroundings.capture(models)
            result = closure()
            Replay(optimizer, models).at_anchors(before, closure)
            return result

        return both

    @override
    def clip_gradients_norm(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        max_norm: float,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = True,
    ) -> Tensor:
        self.precision.unscale_gradients(optimizer)
        scaler = getattr(self.precision, "scaler", None)
        if error_if_nonfinite and isinstance(scaler, SharedGradScaler) and scaler.overflowed(optimizer):
            raise RuntimeError(  # on all ranks, or else those that did not overflow would wait for the others
                "a worker's gradient overflowed in float16, so that its norm is not finite: pass "
                "error_if_nonfinite=False to clip_gradients, and all workers skip this step"
            )
        return clip_grad_norm_(optimizer, max_norm, norm_type, error_if_nonfinite)

    @override
    def clip_gradients_value(self, module: nn.Module, optimizer: Optimizer, clip_val: float) -> None:
        check_clips_by_value(optimizer)
        super().clip_gradients_value(module, optimizer, clip_val)

    # -- checkpoints ------------------------------------------------------------------------------

    def average_buffers(self) -> None:
        """Average float buffers (BatchNorm's statistics) over the workers; a collective.

        ``fabric.save`` does it for what it saves. Call it before a validation whose results should not
        depend on the worker.
        """
        for model in self._models:
            average_buffers(model)

    @override
    def save_checkpoint(
        self,
        path: Any,
        state: dict[str, Any],
        storage_options: Any = None,
        filter: dict[str, Callable[[str, Any], bool]] | None = None,
    ) -> None:
        with self._collecting():
            if self._state_dict_type == "full":
                with self._room_for_a_file(path):
                    super().save_checkpoint(path, state, storage_options, filter)
                return
            contents = self._convert_stateful_objects_in_state(state, filter=filter or {})
        optimizers = {name: self._connection(item) for name, item in state.items()}
        states = {name: (item, contents[name]) for name, item in optimizers.items() if item is not None}
        self._write_folder(path, contents, states, storage_options)

    @contextmanager
    def _collecting(self) -> Iterator[None]:
        # what users ask of a single rank, for instance optimizer.state_dict(), must not wait for the others
        self._saving = True
        try:
            yield
        finally:
            self._saving = False

    @override
    def get_module_state_dict(self, module: nn.Module) -> dict[str, Any]:
        if self._saving:
            average_buffers(module)
        return super().get_module_state_dict(module)

    @override
    def get_optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        state: dict[str, Any] = super().get_optimizer_state(optimizer)
        connection = self._connection(optimizer)
        if self._saving and connection is not None:
            return self._state_to_save(connection, state)
        return state

    @override
    def load_checkpoint(self, path: Any, state: Any = None, *args: Any, **kwargs: Any) -> dict[str, Any]:
        path = self._file_to_read(path)
        if isinstance(state, Optimizer):  # a file with its state alone
            self._stand_in(state).load_state_dict(super().load_checkpoint(path, None, *args, **kwargs))
            return {}
        if not isinstance(state, dict) or not state:
            loaded: dict[str, Any] = self._completed(super().load_checkpoint(path, state, *args, **kwargs))
            return loaded
        stand_ins = {name: self._stand_in(item) for name, item in state.items()}
        remainder = super().load_checkpoint(path, stand_ins, *args, **kwargs)
        state.update({name: item for name, item in stand_ins.items() if not isinstance(item, _OwnState)})
        return remainder

    def _stand_in(self, item: Any) -> Any:
        connection = self._connection(item)
        return item if connection is None else _OwnState(connection, self._own_states)

    # -- registry ---------------------------------------------------------------------------------

    @classmethod
    @override
    def register_strategies(cls, strategy_registry: Any) -> None:
        register(cls, strategy_registry)


class _NoOverlap:
    """Gradients are never exchanged in backward passes; votes begin there with ``overlap=True``."""

    def __init__(self, connections: Sequence[Connection]) -> None:
        self._connections = connections

    @contextmanager
    def no_backward_sync(self, module: nn.Module, enabled: bool = True) -> Iterator[None]:
        with ExitStack() as stack:
            for connection in self._connections if enabled else ():
                stack.enter_context(connection.no_overlap())
            yield


class _OwnState:
    """Takes an optimizer's place while a checkpoint is loaded: each worker takes its own state."""

    def __init__(self, connection: Connection, own_states: Callable[..., list[dict[str, Any]]]) -> None:
        self.connection, self.own_states = connection, own_states

    def state_dict(self) -> dict[str, Any]:
        return self.connection.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        [own] = self.own_states([self.connection], [state])
        self.connection.optimizer.load_state_dict(own)
