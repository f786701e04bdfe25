"""What SignVoteMonitor writes, read back from the loggers' own files."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from lightning_signvr import SignVoteMonitor, SignVoteStrategy
from tests.strategies.helpers import Adversarial, Batch, Regression, batches, fit, flat, state_of
from tests.workers import run_workers

STEPS, EVERY, ACCUMULATE = 6, 2, 3
LOGGED = range(EVERY - 1, STEPS, EVERY)
LAYERS = {"net.0": slice(0, 25), "net.2": slice(25, 31)}
NORMS = {"grad_norm/local", "grad_norm/local_l1", "grad_norm/local_linf"}
COMMON = {"loss/train", *NORMS, *(f"grad_norm/layer/{name}" for name in LAYERS)}
OURS = {"grad_norm/estimate"}
PHASES = {"pack", "all_to_all", "tally", "all_gather"}
ONLY_OF_TWO_PHASES = "comm/seconds/all_to_all"  # two workers have one, unless told
COMMUNICATION = {
    "comm/bytes_sent",
    "comm/bytes_received",
    "comm/bits_per_parameter",
    "comm/savings_vs_fp32",
    "comm/savings_vs_bf16",
    "comm/saved_gb",
    "comm/seconds",
    "comm/share_of_step",
    *(f"comm/seconds/{phase}" for phase in PHASES),
}
VARIANCES = {
    "variance_reduction/gradient_noise",
    "variance_reduction/estimate_noise",
    "variance_reduction/variance_ratio",
}
RATES = {f"sign_vote/{key}" for key in ("agreement", "tie_rate", "abstain_rate", "flip_rate")}
OF_A_VOTE = {
    *RATES,
    *COMMUNICATION,
    *(f"sign_vote/agreement/{name}" for name in LAYERS),
    *(f"sign_vote/worker_agreement/{rank}" for rank in range(2)),
}
ALL = COMMON | OURS | OF_A_VOTE | VARIANCES  # with two workers


def _all_keys(workers: int) -> set[str]:
    return ALL | {f"sign_vote/worker_agreement/{rank}" for rank in range(workers)}


class _Watched(Regression):
    """Logs its loss as any module would, and keeps what the monitor should see."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []
        self.gradients: list[np.ndarray] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("own", loss)
        self.losses.append(loss.item())
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.gradients.append(flat(p.grad for p in self.parameters()))


class _Witness(L.Callback):
    """After each step: the signs that this worker votes with, and the bytes that it has sent."""

    def __init__(self) -> None:
        self.estimates: list[np.ndarray] = []
        self.outcomes: list[np.ndarray] = []
        self.bytes_sent: list[int] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if not trainer.fit_loop._should_accumulate():
            self.estimates.append(state_of(trainer.optimizers[0]))
            voted = trainer.strategy.votes[0].last
            self.outcomes.append(flat(voted.signs(index) for index in range(len(voted.shapes))))
            self.bytes_sent.append(trainer.strategy.votes[0].traffic.bytes_sent)


class _Seen(NamedTuple):
    losses: np.ndarray
    gradients: np.ndarray
    estimates: np.ndarray
    outcomes: np.ndarray
    bytes_sent: np.ndarray
    metrics: dict[str, float]
    summary: dict[str, float]

    @property
    def signs(self) -> np.ndarray:
        return np.sign(self.estimates)


def _fit(rank: int, folder: str) -> _Seen:
    module, witness, monitor = _Watched(), _Witness(), SignVoteMonitor()
    trainer = fit(
        module,
        batches(rank, STEPS * ACCUMULATE),
        SignVoteStrategy(topology="two_phase"),  # for as many phases with any number of workers
        callbacks=[monitor, witness],
        logger=[TensorBoardLogger(folder, name="", version="tensorboard"), CSVLogger(folder, "", "csv")],
        log_every_n_steps=EVERY,
        accumulate_grad_batches=ACCUMULATE,
        gradient_clip_val=0.1,
    )
    return _Seen(
        np.array(module.losses[ACCUMULATE - 1 :: ACCUMULATE]),
        np.array(module.gradients),
        np.array(witness.estimates),
        np.array(witness.outcomes),
        np.array(witness.bytes_sent),
        {key: value.item() for key, value in trainer.callback_metrics.items()},
        monitor.summary(),
    )


@pytest.fixture(scope="module", params=[2, 3])
def workers(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module")
def folder(workers: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def seen(workers: int, folder: Path) -> list[_Seen]:
    return run_workers(_fit, workers, str(folder))


@pytest.fixture(scope="module")
def events(seen: list[_Seen], folder: Path) -> EventAccumulator:
    [file] = (folder / "tensorboard").glob("events*")  # rank 0's alone
    return EventAccumulator(str(file), size_guidance={"histograms": 0}).Reload()


def _values(events: EventAccumulator, key: str) -> list[float]:
    return [event.value for event in events.Scalars(key)]


def _logged(values: np.ndarray) -> np.ndarray:
    return values[..., LOGGED]


def test_each_key_has_a_point_every_log_every_n_steps(events: EventAccumulator, workers: int) -> None:
    assert set(events.Tags()["scalars"]) == _all_keys(workers) | {"own", "epoch"}
    for key in _all_keys(workers):
        assert [event.step for event in events.Scalars(key)] == list(LOGGED), key


def test_the_step_axis_is_that_of_self_log(events: EventAccumulator) -> None:
    assert [event.step for event in events.Scalars("own")] == list(LOGGED)


def test_the_csv_file_has_the_same_values(events: EventAccumulator, folder: Path) -> None:
    rows = list(csv.DictReader((folder / "csv" / "metrics.csv").open()))
    for key in ALL:
        points = [(int(row["step"]), float(row[key])) for row in rows if row[key]]
        expected = [(event.step, event.value) for event in events.Scalars(key)]
        np.testing.assert_allclose(points, expected, rtol=1e-6, err_msg=key)


def test_loss_is_the_mean_over_workers_of_the_last_microbatch(
    events: EventAccumulator, seen: list[_Seen]
) -> None:
    expected = np.mean([_logged(own.losses) for own in seen], axis=0)
    np.testing.assert_allclose(_values(events, "loss/train"), expected, rtol=1e-6)


def test_gradient_norms_are_means_over_workers_before_clipping(
    events: EventAccumulator, seen: list[_Seen]
) -> None:
    def check(key: str, vectors: list[np.ndarray], order: float) -> None:
        norms = np.mean([np.linalg.norm(own, order, axis=1) for own in vectors], axis=0)
        np.testing.assert_allclose(_values(events, key), _logged(norms), rtol=1e-6, err_msg=key)

    gradients = [own.gradients for own in seen]
    for key, order in {"local": 2, "local_l1": 1, "local_linf": np.inf}.items():
        check(f"grad_norm/{key}", gradients, order)
    for name, part in LAYERS.items():
        check(f"grad_norm/layer/{name}", [own[:, part] for own in gradients], 2)
    check("grad_norm/estimate", [own.estimates for own in seen], 2)
    assert min(_values(events, "grad_norm/local")) > 0.1


def test_noise_is_the_variance_over_the_workers(events: EventAccumulator, seen: list[_Seen]) -> None:
    clipped = [own.gradients * np.minimum(1, 0.1 / np.linalg.norm(own.gradients, axis=1, keepdims=True))
               for own in seen]  # fmt: skip
    for key, vectors in {"gradient": clipped, "estimate": [own.estimates for own in seen]}.items():
        variance = np.var(vectors, axis=0, ddof=1).sum(1) / np.mean(np.square(vectors), axis=0).sum(1)
        np.testing.assert_allclose(
            _values(events, f"variance_reduction/{key}_noise"), _logged(variance), rtol=1e-4
        )


def test_layers_workers_and_flips_are_those_of_the_raw_signs(
    events: EventAccumulator, seen: list[_Seen]
) -> None:
    margins = np.abs(sum(own.signs for own in seen))
    for name, part in LAYERS.items():
        agreement = margins[:, part].mean(axis=1) / len(seen)
        np.testing.assert_allclose(_values(events, f"sign_vote/agreement/{name}"), _logged(agreement))
    for rank, own in enumerate(seen):
        agreement = (own.signs == own.outcomes).mean(axis=1)
        np.testing.assert_allclose(
            _values(events, f"sign_vote/worker_agreement/{rank}"), _logged(agreement), rtol=1e-6
        )
    flips = (seen[0].outcomes[1:] != seen[0].outcomes[:-1]).mean(axis=1)
    expected = [flips[step - 1] for step in LOGGED]
    np.testing.assert_allclose(_values(events, "sign_vote/flip_rate"), expected, rtol=1e-6)
    histograms = events.Histograms("sign_vote/margin")
    for step, event in zip(LOGGED, histograms, strict=True):
        counts = [int((margins[step] == margin).sum()) for margin in range(len(seen) + 1)]
        assert (event.histogram_value.bucket, event.histogram_value.num) == (counts, sum(counts))


def test_tensorboard_gets_a_layout_settings_and_hyperparameters(
    events: EventAccumulator, folder: Path, workers: int
) -> None:
    [panel] = events.Tensors("sign_vote/settings/text_summary")
    text = panel.tensor_proto.string_val[0].decode()
    for row in ("| optimizer | Signum |", f"| workers | {workers} |", "| momentum | 0.9 |"):
        assert row in text
    assert "MajorityVote(ties='random'" in text
    layout = Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    charts = {chart.title for category in layout.category for chart in category.chart}
    assert {"Agreement", "Gradient norm", "Variance reduction"} <= charts
    for category in layout.category[:1]:
        for chart in category.chart:
            assert any(re.match(chart.multiline.tag[0], key) for key in ALL), chart.title
    assert events.summary_metadata["_hparams_/experiment"].plugin_data.plugin_name == "hparams"
    hparams = (folder / "csv" / "hparams.yaml").read_text()
    assert "optimizer: Signum" in hparams


def test_agreement_is_that_of_the_workers_signs(events: EventAccumulator, seen: list[_Seen]) -> None:
    agreement = np.abs(sum(own.signs for own in seen)).mean(axis=1) / len(seen)
    np.testing.assert_allclose(_values(events, "sign_vote/agreement"), _logged(agreement), rtol=1e-6)
    ties = (sum(own.signs for own in seen) == 0).mean(axis=1)
    np.testing.assert_allclose(_values(events, "sign_vote/tie_rate"), _logged(ties), rtol=1e-6)
    assert ties.any() == (len(seen) == 2)
    assert _values(events, "sign_vote/abstain_rate") == [0.0] * len(LOGGED)
    assert 0 < agreement.mean() < 1
    assert seen[0].summary["agreement"] == pytest.approx(agreement.mean())


def test_communication_is_what_the_vote_counted(events: EventAccumulator, seen: list[_Seen]) -> None:
    sent = np.diff(_logged(seen[0].bytes_sent), prepend=0) / EVERY
    bits = 8 * sent / seen[0].signs.shape[1]
    ring = 2 * (len(seen) - 1) / len(seen)  # numbers that a ring all-reduce sends per parameter
    np.testing.assert_allclose(_values(events, "comm/bytes_sent"), sent, rtol=1e-6)
    np.testing.assert_allclose(_values(events, "comm/bits_per_parameter"), bits, rtol=1e-6)
    np.testing.assert_allclose(_values(events, "comm/savings_vs_fp32"), 32 * ring / bits, rtol=1e-6)
    np.testing.assert_allclose(_values(events, "comm/savings_vs_bf16"), 16 * ring / bits, rtol=1e-6)
    ring_bytes = 4 * ring * seen[0].signs.shape[1]
    saved = [(ring_bytes * (step + 1) - seen[0].bytes_sent[step]) / 1e9 for step in LOGGED]
    np.testing.assert_allclose(_values(events, "comm/saved_gb"), saved, rtol=1e-6)
    phases = [_values(events, f"comm/seconds/{phase}") for phase in PHASES]
    np.testing.assert_allclose(np.sum(phases, axis=0), _values(events, "comm/seconds"), rtol=1e-6)
    assert 0 < max(_values(events, "comm/share_of_step")) < 1
    assert seen[0].summary["bytes_sent"] == seen[0].bytes_sent[-1] / STEPS
    assert min(_values(events, "comm/seconds")) > 0


def test_callback_metrics_hold_the_last_values(events: EventAccumulator, seen: list[_Seen]) -> None:
    for own in seen:
        assert set(own.metrics) == _all_keys(len(seen)) | {"own"}
        for key in COMMON | VARIANCES:  # the same on all workers
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
    for foreign, ddp, never, two_optimizers in run_workers(_fit_other_cases, 2):
        assert foreign == COMMON | OF_A_VOTE - {ONLY_OF_TWO_PHASES}
        assert ddp == COMMON
        assert never == set()
        generator = {"grad_norm/layer/net.0/1", "grad_norm/layer/net.2/1"}
        assert generator | {"grad_norm/layer/critic/0"} <= two_optimizers
        for number in (0, 1):
            assert {
                f"{key}/{number}" for key in NORMS | COMMUNICATION - {ONLY_OF_TWO_PHASES}
            } <= two_optimizers
        assert "sign_vote/flip_rate/0" in two_optimizers
        assert "sign_vote/flip_rate/1" not in two_optimizers  # it did not step in both of the steps
