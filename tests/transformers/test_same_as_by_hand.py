"""A Trainer under sign_vote gives the same parameters as a loop by hand, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_signvr import Signum
from lightning_signvr.transformers import SignVoteTrainer
from tests.transformers.helpers import (
    BATCH,
    LENGTH,
    WORDS,
    WORKERS,
    Normalized,
    arguments,
    build,
    by_hand,
    data,
    flat,
    points,
    through_trainer,
)
from tests.workers import run_workers

pytestmark = pytest.mark.slow  # the quick part is in tests/test_same_everywhere.py

STEPS = 6
CASES: dict[str, dict[str, Any]] = {
    "Signum": {"name": "Signum"},
    "SSVR": {"name": "SSVR", "max_grad_norm": 0.0},
    "DVRSign": {"name": "DVRSign", "max_grad_norm": 0.0},
    "AdamW": {"name": "AdamW"},
    "Signum, clipped": {"name": "Signum", "max_grad_norm": 0.02},
    "SSVR, clipped": {"name": "SSVR", "max_grad_norm": 0.02},
    "SSVR, bf16": {"name": "SSVR", "bf16": True},
    "SSVR, recomputed activations": {"name": "SSVR", "gradient_checkpointing": True},
    "SSVR, overflow": {"name": "SSVR", "max_grad_norm": 0.0, "overflow": 5},
    "Signum, overflow": {"name": "Signum", "max_grad_norm": 0.0, "overflow": 4},
}


def buffers_after_training(folder: str) -> tuple[np.ndarray, np.ndarray]:
    """During the training, and after it."""
    model = Normalized()
    seen = []

    class Watched(SignVoteTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            seen.append(flat(model.buffers()))
            return super().training_step(*args, **kwargs)

    signum = (Signum, {"lr": 0.01})
    Watched(model, arguments(folder), train_dataset=points(40), optimizer_cls_and_kwargs=signum).train()
    return seen[-1], flat(model.buffers())


def run_all(rank: int, folder: str) -> dict[str, Any]:
    results: dict[str, Any] = {"buffers": buffers_after_training(folder)}
    for case, what in CASES.items():
        trainer = through_trainer(rank, folder, steps=STEPS, **what)
        plainly = {key: value for key, value in what.items() if key != "gradient_checkpointing"}
        results[case] = flat(trainer.model.parameters()), by_hand(rank, steps=STEPS, **plainly)
    results["logs"] = trainer.state.log_history
    before = flat(trainer.model.parameters())
    samples = data(1)[:-1]  # not as many on each worker
    results["evaluated"] = trainer.evaluate(samples)
    results["predicted"] = trainer.predict(samples).predictions
    assert np.array_equal(before, flat(trainer.model.parameters()))
    assert trainer.sign_vote.votes[0].step == STEPS - 1  # evaluation did not vote; a step was skipped
    return results


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_workers(run_all, WORKERS, str(tmp_path_factory.mktemp("runs")), timeout=100)


@pytest.mark.parametrize("case", CASES)
def test_parameters_are_the_same(case: str, runs: list[Any]) -> None:
    for rank, results in enumerate(runs):
        through, by = results[case]
        np.testing.assert_array_equal(through, by, err_msg=f"rank {rank}")
        np.testing.assert_array_equal(through, runs[0][case][0], err_msg="the workers parted")


def test_the_cases_differ_and_move(runs: list[Any]) -> None:
    finals = [runs[0][case][0] for case in CASES]
    assert len({final.tobytes() for final in finals}) == len(finals)
    start = flat(build().parameters())
    assert min(np.abs(final - start).max() for final in finals) > 0.02


def test_the_logs_say_what_was_voted(runs: list[Any]) -> None:
    logs = [entry for entry in runs[0]["logs"] if "loss" in entry]
    assert [entry["step"] for entry in logs] == [2, 4, 6]
    for entry in logs:
        assert 0 < entry["sign_vote/agreement"] < 1
        assert 1 < entry["comm/bits_per_parameter"] < 2.5  # the header weighs much beside so few parameters
        assert entry["learning_rate"] > 0
    assert "sign_vote/agreement" not in runs[0]["logs"][-1]  # the summary of the training


def test_evaluation_and_prediction_see_all_samples(runs: list[Any]) -> None:
    count = len(data(1)) - 1
    assert runs[0]["predicted"].shape == (count, LENGTH, WORDS)
    np.testing.assert_array_equal(runs[0]["predicted"], runs[1]["predicted"])
    model = build().eval()
    torch.nn.utils.vector_to_parameters(
        torch.from_numpy(runs[0][next(reversed(CASES))][0]).float(), model.parameters()
    )
    inputs = torch.stack([sample["input_ids"] for sample in data(1)[:-1]])
    with torch.no_grad():
        expected = torch.cat([model(part).logits for part in inputs.split(BATCH)])
    np.testing.assert_allclose(runs[0]["predicted"], expected.numpy(), rtol=1e-4, atol=1e-5)
    assert runs[0]["evaluated"]["eval_loss"] == runs[1]["evaluated"]["eval_loss"]


def test_buffers_are_averaged_at_the_end(runs: list[Any]) -> None:
    (first, first_end), (second, second_end) = (results["buffers"] for results in runs)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first_end, second_end)
