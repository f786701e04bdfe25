"""Signals that end a run: whichever worker gets one, all stop after the same step."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.optim import Optimizer
from typing_extensions import override

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.strategies import DDPStrategy as _Base
else:
    _Base = object

log = logging.getLogger(__name__)

_NO_CHECKPOINT = (
    "no checkpoint can be saved after an error: saving takes all workers, and the others may be elsewhere or "
    "gone. Resume from the last checkpoint. (OnExceptionCheckpoint and save_on_exception=True do save where "
    "SIGTERM has stopped all workers after the same step.)"
)

SIGTERM, REQUEUE = "SIGTERM", "the signal to requeue"


class StopTogether(_Base):
    """For strategies: SIGTERM and Slurm's signal to requeue stop all workers after the same step.

    Lightning's own handlers begin a collective where the signal lands, in the middle of anything. Unless it
    lands at the same place on all workers, they wait in different collectives until the time-out.

    Here a signal is noted. The workers tell each other while they compute a step, and when its batch is done
    all raise ``stop_exception``, Lightning's own. Callbacks that save on exceptions
    (``ModelCheckpoint(save_on_exception=True)``, ``OnExceptionCheckpoint``) then save a checkpoint of that
    step; a validation that was due is left out. After the signal to requeue, Lightning's handler saves its
    checkpoint and requeues the job.

    After any other error of a worker such callbacks would wait for the others: the error goes on instead.

    Name it before the other bases, so that it is asked before a checkpoint's first collective.
    """

    stop_exception: type[BaseException]
    _trainer: Trainer | None = None
    _agreed = False

    @override
    def setup(self, trainer: Trainer) -> None:
        super().setup(trainer)
        self._trainer, self._agreed = trainer, False
        self._asked = {SIGTERM: False, REQUEUE: False}
        connector: Any = trainer._signal_connector  # which makes these its handlers later
        connector._sigterm_notifier_fn = self._note_sigterm
        if trainer.state.fn == "fit":
            connector._slurm_sigusr_handler_fn = self._note_requeue
        else:
            connector.__dict__.pop("_slurm_sigusr_handler_fn", None)

    # -- noting: this runs in the middle of anything --------------------------------------------------

    def _note_sigterm(self, signum: int, frame: object) -> None:
        if not self._asked[SIGTERM] and self.launcher is not None:
            self.launcher.kill(signum)  # as Lightning does, to the processes that this one has started
        self._asked[SIGTERM] = True
        assert self._trainer is not None
        if self._trainer.state.fn != "fit":  # no steps after which to agree, and nothing to save
            self._trainer._signal_connector.received_sigterm = True

    def _note_requeue(self, signum: int, frame: object) -> None:
        self._asked[REQUEUE] = True

    # -- agreeing -------------------------------------------------------------------------------------

    @override
    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any
    ) -> Any:
        # it takes its way during forward, backward and vote, and all look at it after the same step
        marks, work = self._tell()
        result = super().optimizer_step(optimizer, closure, model, **kwargs)
        work.wait()
        for name, mark in zip(self._asked, marks.tolist(), strict=True):
            if mark:
                self._stop(name, mark - 1)
        return result

    def _tell(self) -> tuple[torch.Tensor, Any]:
        """Tell the others which signals came here; what all were told, when the work is done."""
        mine = [(self.global_rank + 1) * asked for asked in self._asked.values()]
        marks = torch.tensor(mine, device=self.root_device)
        return marks, dist.all_reduce(marks, dist.ReduceOp.MAX, async_op=True)

    @override
    def on_train_end(self) -> None:
        """A signal after the last step must not be lost: the program may go on to another fit."""
        super().on_train_end()
        if self._agreed:
            return
        marks, work = self._tell()
        work.wait()
        mark = marks.tolist()[list(self._asked).index(SIGTERM)]
        if mark:
            self._stop(SIGTERM, mark - 1)
            raise self.stop_exception

    def _stop(self, name: str, worker: int) -> None:
        assert self._trainer is not None
        if not self._agreed and self.is_global_zero:
            log.warning("sign_vote: worker %d got %s; all workers stop after this step", worker, name)
        self._agreed = self._asked[name] = True
        self._trainer._signal_connector.received_sigterm = True  # Lightning looks when the batch is done

    @override
    def on_validation_start(self) -> None:
        if self._agreed:
            # Lightning would look after a batch of it, and workers may have unequal numbers of batches
            raise self.stop_exception
        super().on_validation_start()

    # -- saving ---------------------------------------------------------------------------------------

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        trainer = self._trainer
        if trainer is not None and trainer.interrupted and not self._agreed and self.world_size > 1:
            log.error(_NO_CHECKPOINT)
            # what Lightning would do after the callbacks
            for logger in trainer.loggers:
                logger.finalize("failed")
            trainer._signal_connector.teardown()
            raise sys.exc_info()[1] or RuntimeError(_NO_CHECKPOINT)  # callbacks are called where it is caught
        return super().lightning_module_state_dict()

    @override
    def on_exception(self, exception: BaseException) -> None:
        super().on_exception(exception)
        if self._agreed and self._asked[REQUEUE]:
            assert self._trainer is not None
            connector: Any = self._trainer._signal_connector
            type(connector)._slurm_sigusr_handler_fn(connector, signal.SIGUSR1, None)
