"""The entry: make an Accelerator train by votes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate.optimizer import AcceleratedOptimizer  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_signvr.accelerate import rank_files
from lightning_signvr.accelerate.accelerator import VotingMixin
from lightning_signvr.accelerate.checks import check_accelerator
from lightning_signvr.accelerate.connection import Connection
from lightning_signvr.connecting import destroy_process_group_at_exit, share_overflows
from lightning_signvr.module_state import average_buffers
from lightning_signvr.optimizers import AnchoredOptimizer
from lightning_signvr.optimizers.resizing import OnResize, check_on_resize
from lightning_signvr.replay import Replay
from lightning_signvr.voting import MajorityVote, Nonfinite, TieRule, Voters, ZeroRule


def sign_vote(
    accelerator: Any,
    ties: TieRule = "random",
    zeros: ZeroRule = "abstain",
    seed: int = 0,
    voters: Voters = "worker",
    workers_per_node: int | None = None,
    nonfinite: Nonfinite = "abstain",
    nonfinite_limit: int | None = 50,
    verify: bool = False,
    on_resize: OnResize = "error",
) -> SignVote:
    """Make what ``accelerator`` prepares from now on train with one bit per parameter in each direction.

    Call it right after ``Accelerator(...)`` and leave the rest of the script as it is:

    * models are not wrapped in DistributedDataParallel, so that ``.grad`` is each worker's own gradient;
      all start from rank 0's parameters and buffers;
    * ``optimizer.step()`` votes. An optimizer of this library votes on its own estimate, any other torch
      optimizer steps on the voted signs of the gradients, which the log says once;
    * ``accelerator.clip_grad_norm_`` clips each worker's own gradient by its own norm, before the vote, and
      gradients at other points by the same coefficient;
    * ``accelerator.save_state`` and ``load_state`` keep every worker's own optimizer state;
    * with ``mixed_precision="fp16"`` the workers agree on which steps to skip.

    Methods that need a second gradient (SSVR, DVRSign) take it from :meth:`SignVote.backward`.

    Args:
        accelerator: one that has not prepared a model or an optimizer yet.
        ties, zeros, seed, voters, workers_per_node, nonfinite, nonfinite_limit, verify: of the vote, see
            :class:`~lightning_signvr.voting.MajorityVote`; used for every optimizer that was not given a vote
            of its own.
        on_resize: what ``load_state`` does with a checkpoint of another number of workers. ``"error"``:
            raise. ``"mean"``: every worker starts with the mean of the saved optimizer states, see
            :func:`~lightning_signvr.optimizers.resizing.merged`; ``"reset"``: with none. Parameters and the
            count of steps are kept.

    Returns:
        A handle for what Accelerate has no call for; also kept as ``accelerator.sign_vote``.

    Raises:
        TypeError: not an Accelerator, or a seed that is not an int.
        ValueError: an unknown rule, something prepared already, DeepSpeed, FSDP, Megatron-LM or TPUs.
        RuntimeError: several processes that Accelerate lets train alone.

    Example:
        >>> from accelerate import Accelerator
        >>> from lightning_signvr import Signum
        >>> accelerator = Accelerator(cpu=True)
        >>> sv = sign_vote(accelerator)
        >>> model = torch.nn.Linear(3, 1)
        >>> model, optimizer = accelerator.prepare(model, Signum(model.parameters(), lr=0.01))
        >>> for batch in torch.randn(5, 8, 3):
        ...     accelerator.backward(model(batch).square().mean())
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> sv.votes[0].step
        5
    """
    check_accelerator(accelerator)
    rules: dict[str, Any] = {
        "ties": ties,
        "zeros": zeros,
        "seed": seed,
        "voters": voters,
        "workers_per_node": workers_per_node,
        "nonfinite": nonfinite,
        "nonfinite_limit": nonfinite_limit,
        "verify": verify,
    }
    MajorityVote(**rules)  # raises on bad rules before anything starts
    destroy_process_group_at_exit()
    check_on_resize(on_resize)
    return SignVote(accelerator, rules, on_resize)


class SignVote:
    """Votes under an Accelerator; made by :func:`sign_vote`.

    Attributes:
        accelerator: the Accelerator that votes.
    """

    def __init__(self, accelerator: Any, rules: dict[str, Any], on_resize: OnResize = "error") -> None:
        self.accelerator = accelerator
        self._on_resize = on_resize
        self._rules = rules
        self._connections: list[Connection] = []
        self._loaded: list[dict[str, Any]] = []
        share_overflows(accelerator, rules["nonfinite_limit"])
        accelerator.register_save_state_pre_hook(lambda models, weights, folder: self.write_states(folder))
        accelerator.register_load_state_pre_hook(lambda models, folder: self.read_states(folder))
        accelerator.sign_vote = self
        own_class = type(accelerator)
        accelerator.__class__ = type(own_class.__name__, (VotingMixin, own_class), {})

    @property
    def optimizers(self) -> list[Optimizer]:
        """The optimizers themselves, without Accelerate's wrappers, in the order of their preparation."""
        return [connection.optimizer for connection in self._connections]

    @property
    def votes(self) -> list[MajorityVote]:
        """The vote of each optimizer."""
        return [connection.vote for connection in self._connections]

    # -- in the training loop ---------------------------------------------------------------------

    def backward(self, loss_of: Callable[[], Tensor], optimizer: Any = None) -> Tensor:
        """Compute the loss and its gradients, at other points too where the optimizer compares points.

        Instead of ``accelerator.backward(loss)``, once per microbatch. The second pass has the same samples
        and dropout masks, and leaves no trace but its gradients. For an optimizer that needs one gradient
        this is ``accelerator.backward(loss_of())``.

        Args:
            loss_of: runs the forward pass and returns the loss; called once per point.
            optimizer: which one will step; needed where there are several.

        Returns:
            The loss, detached; not divided by the number of accumulated microbatches.

        Raises:
            TypeError: a loss instead of a function.
            ValueError: several optimizers and none named, or one that was not prepared.
            RuntimeError: no optimizer was prepared.

        Example:
            >>> from accelerate import Accelerator
            >>> from lightning_signvr.optimizers import SSVR
            >>> accelerator = Accelerator(cpu=True)
            >>> sv = sign_vote(accelerator)
            >>> model = torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Dropout())
            >>> model, optimizer = accelerator.prepare(model, SSVR(model.parameters(), lr=0.01))
            >>> for batch in torch.randn(5, 8, 3):
            ...     loss = sv.backward(lambda: model(batch).square().mean())
            ...     optimizer.step()
            ...     optimizer.zero_grad()
        """
        if not callable(loss_of):
            raise TypeError(
                "sv.backward needs a function that returns the loss, since it may run the model again, got "
                f"{type(loss_of).__name__}: write sv.backward(lambda: loss_fn(model(inputs), targets))"
            )
        models = nn.ModuleList(self.accelerator._models)
        return Replay(self._named(optimizer), models).backward(loss_of, self.accelerator.backward)

    def _named(self, optimizer: Any) -> Optimizer:
        """The optimizer meant by an argument, or the only one."""
        optimizers = self.optimizers
        if not optimizers:
            raise RuntimeError(
                "no optimizer is prepared: call accelerator.prepare(model, optimizer, ...) first"
            )
        if optimizer is not None:
            unwrapped: Optimizer = unwrap(optimizer)
            if not any(unwrapped is known for known in optimizers):
                raise ValueError(
                    f"optimizer is a {type(unwrapped).__name__} that this accelerator has not prepared: pass "
                    "what accelerator.prepare returned"
                )
            return unwrapped
        if len(optimizers) > 1 and any(isinstance(known, AnchoredOptimizer) for known in optimizers):
            raise ValueError(
                f"{len(optimizers)} optimizers are prepared, and they compare different points: name the one "
                "that steps on this loss, sv.backward(loss_of, optimizer=...); for a loss of several use one "
                "optimizer with parameter groups"
            )
        return optimizers[0]

    def average_buffers(self) -> None:
        """Replace float buffers (BatchNorm's statistics) by their mean over the workers; a collective.

        Call it before an evaluation, on all processes. ``save_state`` does it by itself.
        """
        for model in self.accelerator._models:
            average_buffers(model)

    def metrics(self) -> dict[str, float]:
        """What the votes decided and cost, for ``accelerator.log``; exchanges nothing.

        ================================  ===========================================================
        key                               value
        ================================  ===========================================================
        ``sign_vote/agreement``           of the last vote: mean of ``|sum of signs| / voters``
        ``sign_vote/tie_rate``            of the last vote: share of the coordinates that were tied
        ``sign_vote/abstain_rate``        of the last vote: share of the votes that were not cast
        ``comm/bits_per_parameter``       sent per parameter and step since the last call
        ``comm/bytes_sent``, …            per step; also ``bytes_received`` and ``seconds``
        ``comm/savings_vs_fp32``          beside a ring all-reduce of fp32 gradients (also ``…_bf16``)
        ================================  ===========================================================

        With several optimizers the number of the optimizer is appended to the keys. Empty where no vote was
        cast since the last call.
        """
        several = len(self._connections) > 1
        return {
            f"{key}/{number}" if several else key: value
            for number, connection in enumerate(self._connections)
            for key, value in connection.meter.read().items()
        }

    # -- called by the Accelerator ----------------------------------------------------------------

    def connect(self, optimizer: Any) -> None:
        """Make a prepared optimizer follow a vote."""
        optimizer = unwrap(optimizer)
        if not any(optimizer is known for known in self.optimizers):
            self._connections.append(Connection(optimizer, self.accelerator, self._rules))

    def disconnect(self) -> None:
        """Forget all optimizers."""
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    # -- checkpoints ------------------------------------------------------------------------------

    def write_states(self, folder: str) -> None:
        """Keep this worker's own optimizer states in a file in ``folder``."""
        states = [connection.state_dict() for connection in self._connections]
        rank_files.write(folder, self.accelerator.process_index, self.accelerator.num_processes, states)

    def read_states(self, folder: str) -> None:
        """Read them, for :meth:`apply_loaded`; before Accelerate loads anything.

        Raises:
            RuntimeError: they are missing or damaged, or of another number of workers or optimizers.
        """
        rank, workers = self.accelerator.process_index, self.accelerator.num_processes
        self._loaded = rank_files.read(folder, rank, workers, len(self._connections), self._on_resize)

    def apply_loaded(self) -> None:
        """After Accelerate has given every worker rank 0's optimizer states."""
        states, self._loaded = self._loaded, []
        for connection, state in zip(self._connections, states, strict=True):
            connection.load_state_dict(state)


def unwrap(optimizer: Any) -> Any:
    """The torch optimizer in Accelerate's wrapper."""
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    return optimizer
