"""The gradients at other points that variance reduction needs, under Lightning's own strategies."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

from lightning_signvr.optimizers import AnchoredOptimizer
from lightning_signvr.strategies.replaying import ReplayMixin
from lightning_signvr.voting import LocalVote, MajorityVote

# names of classes, since each Lightning namespace has its own
_WORKS_UNDER = {"SingleDeviceStrategy", "DDPStrategy"}
_THOUGH_NOT_UNDER = {"DeepSpeedStrategy", "XLAStrategy", "SingleDeviceXLAStrategy"}


class SecondGradient(Callback):
    """Gives SSVR, DVRSign and their kind their second gradient, without the ``sign_vote`` strategies.

    Each microbatch runs again at the previous parameters (and at the snapshot, for finite-sum methods):
    same samples, same dropout masks, nothing logged twice, BatchNorm and metrics as after the first pass.
    Accumulation, ``gradient_clip_val``, fp16 and manual optimization with ``optimizer.step(closure)`` work as
    under ``strategy="sign_vote"``, which needs no callback.

    Under DDP all gradients are averaged at full precision, 32 bits per parameter and pass. All workers then
    agree on every sign, so an optimizer that was given no vote votes locally and sends nothing.

    Works with a single device and with DDP.

    Raises:
        RuntimeError: when training starts under a strategy that shards parameters (FSDP, DeepSpeed,
            ModelParallel) or any other that the second pass does not know.

    Example:
        >>> trainer = Trainer(strategy="ddp", callbacks=[SecondGradient()])  # doctest: +SKIP
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        strategy, name = trainer.strategy, type(trainer.strategy).__name__
        if isinstance(strategy, ReplayMixin):
            rank_zero_info(f"SecondGradient has nothing to do: {name} computes all gradients itself")
            return
        ancestors = _ancestors(strategy)
        if not ancestors & _WORKS_UNDER or ancestors & _THOUGH_NOT_UNDER:
            raise RuntimeError(
                "SecondGradient works where every process has all parameters, on a single device and with "
                f'DDP; got {name}: use Trainer(strategy="sign_vote") or Trainer(strategy="ddp"), or an '
                "optimizer that needs one gradient per step (Signum)"
            )
        try:
            _mix_in_until_teardown(strategy)
        except TypeError as error:
            raise RuntimeError(
                f"SecondGradient cannot extend {name}, which has another base before Lightning's strategy: "
                f"instead of this callback use your own class Replaying{name}(ReplayMixin, {name}), with "
                "ReplayMixin from lightning_signvr.strategies.replaying"
            ) from error

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        strategy: Any = trainer.strategy
        if not isinstance(strategy, _UntilTeardown):
            return
        optimizers = [item for item in strategy.optimizers if isinstance(item, AnchoredOptimizer)]
        if not optimizers:
            names = ", ".join(type(optimizer).__name__ for optimizer in strategy.optimizers)
            rank_zero_warn(
                f"SecondGradient has nothing to do: {names or 'no optimizer'} needs one gradient per step. "
                "Remove the callback, or use an optimizer that compares gradients at two points (SSVR)."
            )
        # a communication hook may leave different gradients on the workers
        if "DDPStrategy" in _ancestors(strategy) and strategy._ddp_comm_hook is None:
            for optimizer in optimizers:
                _vote_locally(optimizer, trainer)


class _UntilTeardown(ReplayMixin):
    """Mixed into an existing strategy for the time of its training."""

    own_class: type

    @override
    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            self.__class__ = self.own_class


def _mix_in_until_teardown(strategy: object) -> None:
    own_class = type(strategy)
    strategy.__class__ = type(own_class.__name__, (_UntilTeardown, own_class), {"own_class": own_class})


def _vote_locally(optimizer: AnchoredOptimizer, trainer: Trainer) -> None:
    if not optimizer.vote_is_default:
        return
    vote, kind = optimizer.vote, optimizer.vote_class
    local = LocalVote if kind is MajorityVote else type(f"Local{kind.__name__}", (LocalVote, kind), {})
    optimizer.vote = local(ties=vote.ties, zeros=vote.zeros, seed=vote.seed)
    if trainer.world_size > 1:
        rank_zero_info(
            f"{type(optimizer).__name__}: DDP averages the gradients, so that all workers agree: each "
            "follows its own sign, and no votes are sent. To send 1 bit per parameter instead of gradients "
            'use strategy="sign_vote".'
        )


def _ancestors(strategy: object) -> set[str]:
    return {ancestor.__name__ for ancestor in type(strategy).__mro__}
