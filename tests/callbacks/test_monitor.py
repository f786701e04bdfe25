"""What SignVoteMonitor writes, read back from the loggers' own files."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_signvr import SignVoteMonitor
from tests.strategies.helpers import Adversarial, Batch, Regression, batches, fit, flat, state_of
from tests.workers import run_workers

WORKERS, STEPS, EVERY, ACCUMULATE = 2, 6, 2, 3
LOGGED = range(EVERY - 1, STEPS, EVERY)
COMMON = {"loss/train", "grad_norm/local"}
OF_A_VOTE = {
    "sign_vote/agreement",
    "sign_vote/tie_rate",
    "sign_vote/abstain_rate",
    "comm/bytes_sent",
    "comm/bits_per_parameter",
    "comm/savings_vs_fp32",
    "comm/seconds",
}


class _Watched(Regression):
    """Logs its loss as any module would, and keeps what the monitor should see."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []
        self.norms: list[float] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("own", loss)
        self.losses.append(loss.item())
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.norms.append(float(np.linalg.norm(flat(p.grad for p in self.parameters()))))


class _Witness(L.Callback):
    """After each step: the signs that this worker votes with, and the bytes that it has sent."""

    def __init__(self) -> None:
        self.signs: list[np.ndarray] = []
        self.bytes_sent: list[int] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if not trainer.fit_loop._should_accumulate():
            self.signs.append(np.sign(state_of(trainer.optimizers[0])))
            self.bytes_sent.append(trainer.strategy.votes[0].traffic.bytes_sent)


class _Seen(NamedTuple):
    losses: np.ndarray
    norms: np.ndarray
    signs: np.ndarray
    bytes_sent: np.ndarray
    metrics: dict[str, float]
    summary: dict[str, float]


def _fit(rank: int, folder: str) -> _Seen:
    module, witness, monitor = _Watched(), _Witness(), SignVoteMonitor()
    trainer = fit(
        module,
        batches(rank, STEPS * ACCUMULATE),
        callbacks=[monitor, witness],
        logger=[TensorBoardLogger(folder, name="", version="tensorboard"), CSVLogger(folder, "", "csv")],
        log_every_n_steps=EVERY,
        accumulate_grad_batches=ACCUMULATE,
        gradient_clip_val=0.1,
    )
    return _Seen(
        np.array(module.losses[ACCUMULATE - 1 :: ACCUMULATE]),
        np.array(module.norms),
        np.array(witness.signs),
        np.array(witness.bytes_sent),
        {key: value.item() for key, value in trainer.callback_metrics.items()},
        monitor.summary(),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def seen(folder: Path) -> list[_Seen]:
    return run_workers(_fit, WORKERS, str(folder))


@pytest.fixture(scope="module")
def events(seen: list[_Seen], folder: Path) -> EventAccumulator:
    [file] = (folder / "tensorboard").glob("events*")  # rank 0's alone
    return EventAccumulator(str(file)).Reload()


def _values(events: EventAccumulator, key: str) -> list[float]:
    return [event.value for event in events.Scalars(key)]


def _logged(values: np.ndarray) -> np.ndarray:
    return values[..., LOGGED]


def test_each_key_has_a_point_every_log_every_n_steps(events: EventAccumulator) -> None:
    assert set(events.Tags()["scalars"]) == COMMON | OF_A_VOTE | {"own", "epoch"}
    for key in COMMON | OF_A_VOTE:
        assert [event.step for event in events.Scalars(key)] == list(LOGGED), key


def test_the_step_axis_is_that_of_self_log(events: EventAccumulator) -> None:
    assert [event.step for event in events.Scalars("own")] == list(LOGGED)


def test_the_csv_file_has_the_same_values(events: EventAccumulator, folder: Path) -> None:
    rows = list(csv.DictReader((folder / "csv" / "metrics.csv").open()))
    for key in COMMON | OF_A_VOTE:
        points = [(int(row["step"]), float(row[key])) for row in rows if row[key]]
        expected = [(event.step, event.value) for event in events.Scalars(key)]
        np.testing.assert_allclose(points, expected, rtol=1e-6, err_msg=key)


def test_loss_is_the_mean_over_workers_of_the_last_microbatch(
    events: EventAccumulator, seen: list[_Seen]
) -> None:
    expected = np.mean([_logged(own.losses) for own in seen], axis=0)
    np.testing.assert_allclose(_values(events, "loss/train"), expected, rtol=1e-6)


def test_gradient_norm_is_the_mean_over_workers_before_clipping(
    events: EventAccumulator, seen: list[_Seen]
) -> None:
    expected = np.mean([_logged(own.norms) for own in seen], axis=0)
    np.testing.assert_allclose(_values(events, "grad_norm/local"), expected, rtol=1e-6)
    assert expected.min() > 0.1


def test_agreement_is_that_of_the_workers_signs(events: EventAccumulator, seen: list[_Seen]) -> None:
    agreement = np.abs(sum(own.signs for own in seen)).mean(axis=1) / WORKERS
    np.testing.assert_allclose(_values(events, "sign_vote/agreement"), _logged(agreement), rtol=1e-6)
    np.testing.assert_allclose(
        _values(events, "sign_vote/tie_rate"), _logged(1 - agreement), rtol=1e-6, atol=1e-7
    )
    assert _values(events, "sign_vote/abstain_rate") == [0.0] * len(LOGGED)
    assert 0 < agreement.mean() < 1
    assert seen[0].summary["agreement"] == pytest.approx(agreement.mean())


def test_communication_is_what_the_vote_counted(events: EventAccumulator, seen: list[_Seen]) -> None:
    sent = np.diff(_logged(seen[0].bytes_sent), prepend=0) / EVERY
    bits = 8 * sent / seen[0].signs.shape[1]
    np.testing.assert_allclose(_values(events, "comm/bytes_sent"), sent, rtol=1e-6)
    np.testing.assert_allclose(_values(events, "comm/bits_per_parameter"), bits, rtol=1e-6)
    np.testing.assert_allclose(_values(events, "comm/savings_vs_fp32"), 32 / bits, rtol=1e-6)
    assert seen[0].summary["bytes_sent"] == seen[0].bytes_sent[-1] / STEPS
    assert min(_values(events, "comm/seconds")) > 0


def test_callback_metrics_hold_the_last_values(events: EventAccumulator, seen: list[_Seen]) -> None:
    for own in seen:
        assert set(own.metrics) == COMMON | OF_A_VOTE | {"own"}
        for key in COMMON:  # the same on all workers
            assert own.metrics[key] == pytest.approx(_values(events, key)[-1], rel=1e-6)


def _fit_other_cases(rank: int) -> list[set[str]]:
    def keys(module: L.LightningModule, strategy: str = "sign_vote", log_every_n_steps: int = 1) -> set[str]:
        monitor = SignVoteMonitor()
        trainer = fit(
            module, batches(rank, 2), strategy, callbacks=[monitor], log_every_n_steps=log_every_n_steps
        )
        return set(trainer.callback_metrics)

    return [
        keys(Regression(torch.optim.AdamW)),
        keys(Regression(torch.optim.AdamW), "ddp"),
        keys(Regression(), log_every_n_steps=0),
        keys(Adversarial(seed=0)),
    ]


def test_other_optimizers_strategies_and_settings() -> None:
    for foreign, ddp, never, two_optimizers in run_workers(_fit_other_cases, WORKERS):
        assert foreign == COMMON | OF_A_VOTE
        assert ddp == COMMON
        assert never == set()
        assert two_optimizers == {"grad_norm/local"} | {
            f"{key}/{number}" for key in OF_A_VOTE for number in (0, 1)
        }
