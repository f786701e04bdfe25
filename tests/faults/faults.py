"""What goes wrong in the programs of this folder: on one rank, at one point of one step, once."""

from __future__ import annotations

import io
import os
import resource
import signal
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_signvr.optimizers import SignOptimizer
from lightning_signvr.voting.two_phase import TwoPhase


class Fault:
    """See the module.

    Args:
        options: of the program: ``fault``, a name of :data:`FAULTS` or nothing; ``step``, counted from 0; and
            ``victim``, the rank, None for every process that has these options.
        rank: of this process.
        net: that is trained.
    """

    def __init__(self, options: Namespace, rank: int, net: nn.Module) -> None:
        self.net, self._options, self._rank = net, options, rank
        self._word = options.folder / "fault"

    def begin_step(self, step: int) -> None:
        """Let it happen in this step, where it is due."""
        options = self._options
        due = step == options.step and options.victim in (None, self._rank)
        if options.fault and due and not self._word.exists():
            FAULTS[options.fault](self)

    def now(self) -> None:
        """Leave word of when it happened, and where."""
        self._word.write_text(f"{time.time()} {self._rank}")

    def die(self, *_: Any) -> None:
        """As by the kernel's out-of-memory killer."""
        self.now()
        os.kill(os.getpid(), signal.SIGKILL)


def die_after(owner: type, name: str) -> Callable[[Fault], None]:
    """Die when a method has returned: what it has started is under way."""

    def arm(fault: Fault) -> None:
        method = getattr(owner, name)

        def then_die(*args: Any, **kwargs: Any) -> None:
            method(*args, **kwargs)
            fault.die()

        setattr(owner, name, then_die)

    return arm


def die_in_backward(fault: Fault) -> None:
    """When the last layer has its gradients, and the first one not yet."""
    next(fault.net.parameters()).register_hook(fault.die)


def die_in_save(fault: Fault) -> None:
    """When half of the next checkpoint is in its file."""

    def half(contents: Any, file: Any) -> None:
        whole = io.BytesIO()
        save(contents, whole)
        file.write(whole.getvalue()[: whole.tell() // 2])
        file.flush()
        fault.die()

    save, torch.save = torch.save, half


def lose_the_machine(fault: Fault) -> None:
    """The agent of torchrun dies with its only worker."""
    os.kill(os.getppid(), signal.SIGKILL)
    fault.die()


def raise_error(fault: Fault) -> None:
    fault.now()
    raise ValueError("this sample cannot be read")


def run_out_of_memory(fault: Fault) -> None:
    """Ask for more than the process may have, so that the system refuses."""
    fault.now()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 2**28
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    torch.zeros(2**29)


KILLS: dict[str, Callable[[Fault], None]] = {
    "backward": die_in_backward,
    "phase one": die_after(TwoPhase, "send"),
    "phase two": die_after(TwoPhase, "decide"),
    "update": die_after(SignOptimizer, "update"),
    "save": die_in_save,
}
FAULTS = {**KILLS, "machine": lose_the_machine, "error": raise_error, "memory": run_out_of_memory}
