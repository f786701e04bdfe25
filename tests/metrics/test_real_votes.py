"""Metrics of real votes of 1, 2 and 3 workers, beside the same numbers from the workers' raw signs."""

from __future__ import annotations

import csv
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger
from torchmetrics import Metric, MetricCollection

from lightning_signvr import MajorityVote
from lightning_signvr.metrics import (
    AbstainRate,
    CommunicationSavings,
    FlipRate,
    GradientNorm,
    SignAgreement,
    TieRate,
    VoteMargin,
    WorkerAgreement,
)
from lightning_signvr.voting import MeanVote
from tests.strategies.helpers import Batch, Regression, batches, fit, state_of
from tests.voting.oracle import (
    SHAPES,
    expected_outcome,
    few_zeros,
    many_zeros,
    missing,
    parameters,
    random,
    tied,
)
from tests.workers import run_workers

SEED, FIT_STEPS = 5, 4
STORY = (random, few_zeros, many_zeros, tied, missing, random)
GROUPS = {"matrices": [3, 5], "odd": (4, 2), "empty": [0]}
NORMS = {"l1": 1, "l2": 2, "linf": math.inf}
NUMELS = [int(np.prod(shape)) for shape in SHAPES]

Values = dict[str, np.ndarray]


# -- on each worker -------------------------------------------------------------------------------


def play(rank: int, folder: str) -> dict[str, Any]:
    return {
        **count(rank),
        "norms": norms(rank),
        "flips of means": flips_of_means(rank),
        "fit": fit_with_a_metric(rank, folder),
    }


def collection(**options: Any) -> MetricCollection:
    metrics: dict[str, Metric] = {
        "agreement": SignAgreement(GROUPS, **options),
        "ties": TieRate(GROUPS, **options),
        "abstentions": AbstainRate(GROUPS, **options),
        "all": SignAgreement(**options),
        "flips": FlipRate(**options),
        "margins": VoteMargin(**options),
        "workers": WorkerAgreement(**options),
        "traffic": CommunicationSavings(**options),
    }
    return MetricCollection(metrics)


def as_arrays(values: dict[str, Any]) -> Values:
    return {name: value.numpy() for name, value in values.items()}


def count(rank: int) -> dict[str, Any]:
    """Each vote's values, and those of all votes: on this rank alone, and after an exchange."""
    vote = MajorityVote(seed=SEED)
    vote.detailed = True
    alone, synced = collection(), collection(sync_on_compute=True)
    alone["traffic"].update(vote)
    synced["traffic"].update(vote)
    each, traffic = [], [(vote.traffic.bytes_sent, vote.traffic.bytes_received)]
    for step, make in enumerate(STORY):
        votes = vote(make(rank, step), parameters())
        each.append(as_arrays(alone(votes=votes, vote=vote)))
        synced.update(votes=votes, vote=vote)
        traffic.append((vote.traffic.bytes_sent, vote.traffic.bytes_received))
    everything = {"alone": as_arrays(alone.compute()), "synced": as_arrays(synced.compute())}
    return {"each": each, "traffic": np.diff(traffic, axis=0), **everything}


def norms(rank: int) -> Values:
    """The mean over two gradients of each worker."""
    metrics = MetricCollection({name: GradientNorm(norm) for name, norm in NORMS.items()})
    for step in range(2):
        metrics.update(random(rank, step))
    return as_arrays(metrics.compute())


def flips_of_means(rank: int) -> list[float]:
    vote, flips = MeanVote(), FlipRate()
    return [float(flips(vote(make(rank, step), parameters()))) for step, make in enumerate(STORY)]


class Logging(Regression):
    """Logs a metric as any module would."""

    def __init__(self) -> None:
        super().__init__()
        self.agreement = SignAgreement()
        self.signs: list[np.ndarray] = []

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.agreement(self.trainer.strategy.votes[0].last)
        self.log("agreement", self.agreement, on_step=True, on_epoch=True)
        self.signs.append(np.sign(state_of(self.trainer.optimizers[0])))


def fit_with_a_metric(rank: int, folder: str) -> tuple[np.ndarray, float]:
    module, logger = Logging(), CSVLogger(folder, "", "")
    trainer = fit(module, batches(rank, FIT_STEPS), logger=logger, log_every_n_steps=1)
    return np.array(module.signs), float(trainer.callback_metrics["agreement_epoch"])


# -- what they should be --------------------------------------------------------------------------


@pytest.fixture(scope="module", params=(1, 2, 3))
def played(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[dict[str, Any]], Path]:
    folder = tmp_path_factory.mktemp("logs")
    return run_workers(play, request.param, str(folder)), folder


def ballots(workers: int, step: int) -> list[np.ndarray]:
    """Per tensor the signs of all workers, ``[workers, numel]``, 0 for none."""
    everyones = [STORY[step](rank, step) for rank in range(workers)]
    return [
        np.array([np.zeros(numel) if d[k] is None else d[k].sign().flatten().numpy() for d in everyones])
        for k, numel in enumerate(NUMELS)
    ]


def outcome(workers: int, step: int) -> np.ndarray:
    directions = [STORY[step](rank, step) for rank in range(workers)]
    return np.concatenate(expected_outcome(directions, step, seed=SEED).signs)


def ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def expected(workers: int, steps: range) -> Values:
    """Of the votes of these steps, ratios of sums."""
    values: dict[str, Any] = {}
    for group, tensors in {**GROUPS, "total": range(len(SHAPES))}.items():
        votes = np.concatenate([ballots(workers, step)[k] for step in steps for k in tensors], axis=1)
        margin, cast = np.abs(votes.sum(0)), np.abs(votes).sum()
        ties = ((margin == 0) & (np.abs(votes).sum(0) > 0)).sum()
        values[f"agreement_{group}"] = ratio(margin.sum(), cast)
        values[f"ties_{group}"] = ratio(ties, margin.size)
        values[f"abstentions_{group}"] = ratio(votes.size - cast, votes.size)
        if group == "total":
            values["all"] = values["agreement_total"]
            values["margins"] = np.bincount(margin.astype(int), minlength=workers + 1) / margin.size
            decided = np.concatenate([outcome(workers, step) for step in steps])
            agreeing = ((votes == decided) & (decided != 0)).sum(1)
            values["workers"] = agreeing / ((votes != 0) & (decided != 0)).sum(1)
    pairs = [(outcome(workers, step - 1), outcome(workers, step)) for step in steps if step]
    values["flips"] = flip_rate(pairs)
    return values


def flip_rate(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    products = [before * after for before, after in pairs]
    flips = sum((product < 0).sum() for product in products)
    compared = sum((product != 0).sum() for product in products)
    return ratio(flips, compared)


def assert_equal(values: Values, expected: Values) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], np.squeeze(value), rtol=1e-6, err_msg=name)


def test_each_vote(played: tuple[list[dict[str, Any]], Path]) -> None:
    results, _ = played
    for step in range(len(STORY)):
        right = expected(len(results), range(step, step + 1))
        for result in results:
            assert_equal(result["each"][step], right)


@pytest.mark.parametrize("how", ["alone", "synced"])
def test_all_votes_on_each_rank_and_after_an_exchange(
    played: tuple[list[dict[str, Any]], Path], how: str
) -> None:
    results, _ = played
    right = expected(len(results), range(len(STORY)))
    assert 0 < right["flips"] < 1
    for result in results:
        assert_equal(result[how], right)


def test_traffic(played: tuple[list[dict[str, Any]], Path]) -> None:
    results, _ = played
    workers, voted = len(results), sum(NUMELS) * len(STORY)
    everyones = sum(result["traffic"].sum(0) for result in results)
    for result in results:
        for how, (sent, received), ranks in (
            ("alone", result["traffic"].sum(0), 1),
            ("synced", everyones, workers),
        ):
            values = result[how]
            assert (values["traffic_bytes_sent"], values["traffic_bytes_received"]) == (sent, received)
            bits = 8 * sent / voted / ranks
            right = {"bits_per_parameter": bits, "bits_received_per_parameter": 8 * received / voted / ranks}
            for name, width in (("fp32", 32), ("bf16", 16)):
                right[f"savings_vs_{name}"] = ratio(2 * (workers - 1) / workers * width, bits)
            assert_equal(values, {f"traffic_{name}": value for name, value in right.items()})
        for values, (sent, received) in zip(result["each"], result["traffic"], strict=True):
            assert (values["traffic_bytes_sent"], values["traffic_bytes_received"]) == (sent, received)


def test_gradient_norms_are_the_mean_over_updates_and_workers(
    played: tuple[list[dict[str, Any]], Path],
) -> None:
    results, _ = played
    gradients = [
        np.concatenate([part.double().flatten().numpy() for part in random(rank, step)])
        for rank in range(len(results))
        for step in range(2)
    ]
    for name, norm in NORMS.items():
        right = np.mean([np.linalg.norm(gradient, norm) for gradient in gradients])
        for result in results:
            assert result["norms"][name] == pytest.approx(right, rel=1e-6)


def test_a_mean_of_zero_is_not_a_sign_that_can_flip(played: tuple[list[dict[str, Any]], Path]) -> None:
    results, _ = played
    signs = [
        np.sign(np.concatenate([part.sum(0) for part in ballots(len(results), step)]))
        for step in range(len(STORY))
    ]
    right = [math.nan, *(flip_rate([pair]) for pair in pairwise(signs))]
    for result in results:
        np.testing.assert_allclose(result["flips of means"], right, rtol=1e-6)


def test_logged_by_a_module(played: tuple[list[dict[str, Any]], Path]) -> None:
    results, folder = played
    signs = [result["fit"][0] for result in results]
    agreement = np.abs(sum(signs)).mean(1) / len(results)
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    logged = [float(row["agreement_step"]) for row in rows if row["agreement_step"]]
    np.testing.assert_allclose(logged, agreement, rtol=1e-6)
    for result in results:
        assert result["fit"][1] == pytest.approx(agreement.mean(), rel=1e-6)
