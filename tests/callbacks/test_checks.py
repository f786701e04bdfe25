"""ReplicaCheck and VoteAutopsy on real workers, and the monitors where there is nothing to see."""

from __future__ import annotations

import logging
from typing import Any

import lightning as L
import pytest
import torch

from lightning_signvr import SignSGD, SignVoteMonitor
from lightning_signvr.callbacks import (
    CommunicationMonitor,
    GradientNormMonitor,
    ReplicaCheck,
    SignAgreementMonitor,
    VarianceReductionMonitor,
    VoteAutopsy,
)
from lightning_signvr.optimizers import SSVR, SSVRMV
from tests.strategies.helpers import Regression, batches, fit, flat, float16, loader, parameters_of
from tests.workers import run_workers


class _Flip(L.Callback):
    """One bit of one weight of one worker changes after the second step."""

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step == 2 and trainer.global_rank == 1:
            module.net[0].weight.data.view(torch.int32)[2, 3] ^= 1 << 20


class _Contrary(Regression):
    """Worker 1 votes against its own gradient."""

    def on_after_backward(self) -> None:
        if self.trainer.global_rank == 1:
            for parameter in self.parameters():
                parameter.grad.neg_()


class _Noise(Regression):
    """Signs of every worker are coins, but for the last layer, where workers agree."""

    def on_after_backward(self) -> None:
        generator = torch.Generator().manual_seed(97 * self.trainer.global_step + self.trainer.global_rank)
        for parameter in self.net[0].parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for parameter in self.net[2].parameters():
            parameter.grad = torch.ones_like(parameter)

    def configure_optimizers(self) -> Any:
        return SignSGD(self.parameters(), lr=0.01)


class _TwoOptimizers(Regression):
    """The first one does not vote; a layer of the second freezes on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = super().training_step(batch, batch_idx)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        if batch_idx == 2:
            self.net[1][0].requires_grad_(False)

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(self.net[0].parameters()), SignSGD(self.net[1].parameters(), lr=0.01)]


def _nested() -> _TwoOptimizers:
    module = _TwoOptimizers()
    module.net = torch.nn.Sequential(
        torch.nn.Linear(4, 5), torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Linear(3, 1))
    )
    return module


class _Overflow(Regression):
    """The loss of the last batch overflows on worker 0."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * torch.inf if batch_idx == 5 and self.trainer.global_rank == 0 else loss


class _Asks(L.Callback):
    """Wants details of every vote, and clipped coordinates counted, for itself; what it gets."""

    def __init__(self) -> None:
        self.got: list[bool] = []

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.strategy.votes[0].detailed = True
        trainer.optimizers[0].counts_clipping = True

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        got = trainer.strategy.votes[0].last.details, trainer.optimizers[0].clip_fraction
        self.got.append(None not in got)


def _same(rank: int, count: int) -> list[Any]:
    return batches(0, count)


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def play(rank: int) -> dict[str, Any]:
    records = _Records()
    logger = logging.getLogger("lightning_signvr.callbacks")
    logger.addHandler(records)

    def run(module: L.LightningModule, *callbacks: L.Callback, steps: int = 6, **options: Any) -> Any:
        records.texts.clear()
        error = None
        try:
            trainer = fit(
                module, _same(rank, steps), callbacks=list(callbacks), log_every_n_steps=1, **options
            )
        except RuntimeError as caught:
            error, trainer = str(caught), None
        metrics = {} if trainer is None else {k: v.item() for k, v in trainer.callback_metrics.items()}
        return error, list(records.texts), metrics, parameters_of(module)

    results: dict[str, Any] = {"healthy": run(Regression(), ReplicaCheck(1), VoteAutopsy())}
    for action in ("warn", "raise", "repair"):
        results[action] = run(Regression(), _Flip(), ReplicaCheck(2, action))
    results["contrary"] = run(_Contrary(), VoteAutopsy(patience=2), SignAgreementMonitor())
    results["noise"] = run(_Noise(), VoteAutopsy(threshold=0.7, layers=1))
    results["ssvr"] = run(Regression(lambda p: SSVR(p, lr=0.01)), SignVoteMonitor())
    results["clipping"] = run(
        Regression(lambda p: SSVRMV(p, lr=0.01, radius=1e-3, radius_policy="fixed")),
        VarianceReductionMonitor(samples=5),
    )
    asks = _Asks()
    run(Regression(lambda p: SSVRMV(p, lr=0.01)), SignVoteMonitor(), asks)
    results["asked"] = asks.got
    autopsy, agreement = VoteAutopsy(patience=2), SignAgreementMonitor(per_layer=False, per_worker=False)
    results["mute"] = run(_Contrary(), autopsy, agreement)
    results["overflow"] = run(_Overflow(), SignVoteMonitor(), **float16())
    results["ddp"] = run(Regression(torch.optim.SGD), CommunicationMonitor(), strategy="ddp")
    return results


@pytest.fixture(scope="module")
def played() -> list[dict[str, Any]]:
    return run_workers(play, 3)


def test_equal_replicas_raise_no_alarm(played: list[dict[str, Any]]) -> None:
    for result in played:
        error, texts, _, _ = result["healthy"]
        assert (error, texts) == (None, [])


def test_one_flipped_bit_is_named_by_parameter_and_rank(played: list[dict[str, Any]]) -> None:
    expected = (
        r"the workers' replicas differ in 1 of 4 parameters (net.0.weight): rank(s) 1 against the others"
    )
    _, texts, _, _ = played[0]["warn"]
    assert len(texts) == 3  # at each of three checks
    assert all(text.startswith(expected) for text in texts)
    assert [result["warn"][1] for result in played[1:]] == [[], []]
    for result in played:
        error, *_ = result["raise"]
        assert error is not None
        assert error.startswith(expected)
        assert error.endswith("resume from the last checkpoint")


def test_repair_makes_the_replicas_equal_again(played: list[dict[str, Any]]) -> None:
    error, texts, _, _ = played[0]["repair"]
    assert error is None
    assert len(texts) == 1  # and never again
    assert "they were set to what most workers have" in texts[0]
    first, second, third = (result["repair"][3] for result in played)
    assert (first == second).all()
    assert (first == third).all()
    assert (played[0]["healthy"][3] == first).all()


def test_a_worker_that_votes_against_the_others_is_named(played: list[dict[str, Any]]) -> None:
    _, texts, metrics, _ = played[0]["contrary"]
    assert [text.partition(": ")[2].partition(" vote")[0] for text in texts] == ["worker(s) 1"]
    assert "sign vote, step 2" in texts[0]
    assert metrics["sign_vote/worker_agreement/1"] == 0
    assert metrics["sign_vote/worker_agreement/0"] == metrics["sign_vote/worker_agreement/2"] == 1


def test_a_collapse_names_the_layer_and_says_what_to_try(played: list[dict[str, Any]]) -> None:
    _, texts, _, _ = played[0]["noise"]
    [text] = texts
    assert "the workers' votes hardly agree" in text
    assert "Least in net.0 (" in text
    assert "net.2" not in text
    assert "EFSignum" in text


def test_variance_reduction_is_measured(played: list[dict[str, Any]]) -> None:
    for result in played:
        _, texts, metrics, _ = result["ssvr"]
        assert texts == []
        # all workers have the same data here: no variance to speak of, and a smooth loss
        assert 0.5 < metrics["variance_reduction/gradient_cosine"] <= 1
        assert "sign_vote/clip_fraction" not in metrics
        _, _, metrics, _ = result["clipping"]
        assert 0.9 < metrics["sign_vote/clip_fraction"] <= 1


def test_monitors_leave_what_others_asked_for_alone(played: list[dict[str, Any]]) -> None:
    for result in played:
        assert result["asked"] == [True] * 6
    assert len(played[0]["mute"][1]) == 1  # the autopsy has its details though the other wants none


def test_a_skipped_step_is_not_logged_as_if_taken(played: list[dict[str, Any]]) -> None:
    for result in played:
        _, _, metrics, _ = result["overflow"]
        assert metrics["grad_norm/estimate"] > 0  # of the step before


def test_layers_are_those_of_the_optimizer_that_votes() -> None:
    module = _nested()
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, log_every_n_steps=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[SignVoteMonitor()],
    )  # fmt: skip
    trainer.fit(module, loader(batches(0, 6)))
    agreement = {key for key in trainer.callback_metrics if key.startswith("sign_vote/agreement/")}
    assert agreement == {"sign_vote/agreement/net.1.0", "sign_vote/agreement/net.1.1"}
    assert "grad_norm/layer/net.1.1/1" in trainer.callback_metrics


def test_a_strategy_that_does_not_vote_is_one_warning(played: list[dict[str, Any]]) -> None:
    for result in played:
        error, texts, metrics, _ = result["ddp"]
        assert error is None
        [text] = texts
        assert "CommunicationMonitor has nothing to show: no optimizer votes under DDPStrategy" in text
        assert metrics == {}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReplicaCheck(0), "every_n_steps must be at least 1, got 0"),
        (lambda: ReplicaCheck(1, "cry"), "on_mismatch must be one of 'warn', 'raise', 'repair', got 'cry'"),
        (lambda: VoteAutopsy(threshold=1.5), "threshold must be None or between 0 and 1, got 1.5"),
        (lambda: VoteAutopsy(patience=0), "patience must be at least 1, got 0"),
        (lambda: VarianceReductionMonitor(samples=0), "samples must be at least 1, got 0"),
        (lambda: GradientNormMonitor(norms=["l3"]), "norms must be among 'l1', 'l2', 'linf', got 'l3'"),
    ],
    ids=["every_n_steps", "on_mismatch", "threshold", "patience", "samples", "norms"],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_lone_workers_have_nothing_to_compare() -> None:
    module = Regression()
    assert ReplicaCheck().check(module) == []
    assert flat(module.parameters()).size == 31
