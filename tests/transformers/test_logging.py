"""What the Trainer's own callbacks write."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_signvr import Signum
from lightning_signvr.transformers import SignVoteTrainer
from tests.transformers.helpers import WORKERS, Normalized, arguments, points
from tests.workers import run_workers

STEPS = 4


def train(rank: int, folder: str) -> dict[str, float]:
    """The last metrics that the log of this worker has."""
    args = arguments(folder, report_to=["tensorboard"], logging_steps=1, max_steps=STEPS)
    signum = (Signum, {"lr": 0.01})
    trainer = SignVoteTrainer(Normalized(), args, train_dataset=points(60), optimizer_cls_and_kwargs=signum)
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry][-1]


@pytest.mark.slow
def test_tensorboard_has_what_was_voted(tmp_path: Path) -> None:
    last, _ = run_workers(train, WORKERS, str(tmp_path))
    [file] = tmp_path.rglob("events.out.tfevents.*")  # one process writes
    events = EventAccumulator(str(file))
    events.Reload()
    names = ["sign_vote/agreement", "sign_vote/tie_rate", "sign_vote/abstain_rate", "comm/bits_per_parameter"]
    for name in [*names, "comm/bytes_sent", "comm/savings_vs_fp32", "loss", "learning_rate"]:
        scalars = events.Scalars(f"train/{name}")
        assert [scalar.step for scalar in scalars] == list(range(1, STEPS + 1))
        assert scalars[-1].value == pytest.approx(last[name])
    assert last["comm/bits_per_parameter"] > 1
    assert 0 < last["sign_vote/agreement"] <= 1
