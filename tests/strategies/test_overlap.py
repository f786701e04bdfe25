"""``overlap=True`` in Lightning and Fabric: the same outcome, votes that begin in backward, and why not."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from lightning.fabric import Fabric

from lightning_signvr import SignVoteMonitor, SignVoteStrategy
from lightning_signvr.fabric import SignVoteStrategy as FabricSignVoteStrategy
from lightning_signvr.optimizers import SSVR, EFSignum, Lion
from tests.strategies.helpers import Adversarial, Regression, batches, fit, float16, parameters_of, signum
from tests.workers import run_workers

WORKERS, BUCKETS = 2, {"bucket_parameters": 8}


class Watched(Regression):
    """Keeps how many collectives were started before each ``optimizer.step()``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.before_step: list[int] = []

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        traffic = optimizer.vote.traffic
        self.before_step.append(traffic.collectives)


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "overlap" in record.getMessage() or "begin in backward" in record.getMessage():
            self.lines.append(record.getMessage())


def lightning(rank: int) -> list[tuple[np.ndarray, list[int]]]:
    results = []
    for overlap in (False, True):
        for optimizer in (signum, lambda parameters: Lion(parameters, lr=0.01)):
            for accumulate in (1, 3):
                module = Watched(optimizer=optimizer)
                strategy = SignVoteStrategy(overlap=overlap, **BUCKETS)
                monitor = SignVoteMonitor()
                options = {
                    "accumulate_grad_batches": accumulate,
                    "log_every_n_steps": 3,
                    "callbacks": [monitor],
                }
                fit(module, batches(rank, 13), strategy, **options)
                results.append((parameters_of(module), module.before_step))
    return results


def test_lightning() -> None:
    workers = run_workers(lightning, WORKERS)
    for results in workers:
        for (serial, none), (overlapped, early), (other, _) in zip(
            results[:4], results[4:], workers[0][4:], strict=True
        ):
            assert (serial == overlapped).all()
            assert (other == overlapped).all()
            assert none[0] == 0
            assert early[0] > 0  # begun in backward
            # at logged steps monitors look closer, and votes wait for step()
            assert early[2] - early[1] < early[1] - early[0]


def reasons(rank: int) -> list[list[str]]:
    found = []
    for module, options in (
        (Regression(), {}),
        (Regression(), {"gradient_clip_val": 0.5}),
        (Regression(), float16()),
        (Adversarial(seed=0), {}),
        (Regression(lambda parameters: SSVR(parameters, lr=0.01)), {}),
        (Regression(lambda parameters: EFSignum(parameters, lr=0.01)), {}),
    ):
        records = Records()
        logger = logging.getLogger("lightning_signvr.connecting")
        logger.addHandler(records)
        logger.setLevel(logging.INFO)
        fit(module, batches(rank, 3), SignVoteStrategy(overlap=True), **options)
        logger.removeHandler(records)
        found.append(records.lines)
    return found


def test_it_says_once_whether_it_is_on() -> None:
    found, silent = run_workers(reasons, WORKERS)
    assert silent == [[]] * 6  # rank 0 speaks
    expected = [
        ["begin in backward"],
        ["gradient_clip_val=0.5"],
        ["unscales gradients"],
        ["Signum: manual optimization", "SGD: manual optimization"],
        ["two points"],
        ["all tensors together"],
    ]
    for lines, parts in zip(found, expected, strict=True):
        assert len(lines) == len(parts)
        assert all(part in line for part, line in zip(parts, lines, strict=True)), lines


def fabric(rank: int) -> list[tuple[np.ndarray, int]]:
    results = []
    for overlap in (False, True):
        strategy = FabricSignVoteStrategy(overlap=overlap, **BUCKETS)
        fabric = Fabric(accelerator="cpu", devices=WORKERS, strategy=strategy)
        fabric.launch()
        module = Regression()
        model, optimizer = fabric.setup(module.net, signum(module.parameters()))
        early = 0
        for number, (inputs, targets) in enumerate(batches(rank, 12)):
            with fabric.no_backward_sync(model, enabled=number % 3 != 2):
                fabric.backward((model(inputs) - targets).pow(2).mean())
            if number == 2:
                early = strategy.votes[0].traffic.collectives
            if number % 3 == 2:
                optimizer.step()
                optimizer.zero_grad()
        results.append((parameters_of(module), early))
    return results


def test_fabric() -> None:
    for (serial, none), (overlapped, early) in run_workers(fabric, WORKERS):
        assert (serial == overlapped).all()
        assert none == 0
        assert early > 0


def clip_in_hook(rank: int) -> None:
    class Clipping(Regression):
        def on_after_backward(self) -> None:
            for parameter in self.parameters():
                parameter.grad.clamp_(-0.1, 0.1)  # type: ignore[union-attr]

    fit(Clipping(), batches(rank, 3), SignVoteStrategy(overlap=True))


def test_a_hook_that_changes_gradients_is_an_error() -> None:
    with pytest.raises(Exception, match="was changed or removed after backward"):
        run_workers(clip_in_hook, WORKERS)
