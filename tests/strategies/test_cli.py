"""The strategy from LightningCLI's configuration files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.cli import LightningCLI

from tests.strategies.helpers import Regression, batches, loader, parameters_of, same_on_all
from tests.workers import run_workers

TRAINER = """
  accelerator: cpu
  devices: 2
  max_epochs: 1
  use_distributed_sampler: false
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
"""
BY_CLASS_PATH = """
    class_path: lightning_signvr.SignVoteStrategy
    init_args: {ties: positive, zeros: random, seed: 7, process_group_backend: gloo}"""


class _Model(Regression):
    def __init__(self) -> None:
        super().__init__()

    def train_dataloader(self) -> Any:
        return loader(batches(self.global_rank, 3))


def _fit(rank: int, config: str) -> tuple[Any, str]:
    cli = LightningCLI(_Model, args=["fit", "--config", config], save_config_callback=None)
    [vote] = cli.trainer.strategy.votes
    return parameters_of(cli.model), repr(vote)


@pytest.mark.parametrize(
    ("strategy", "vote"),
    [
        ("sign_vote", "MajorityVote(ties='random', zeros='abstain', seed=0)"),
        (BY_CLASS_PATH, "MajorityVote(ties='positive', zeros='random', seed=7)"),
    ],
    ids=["by name", "by class_path"],
)
def test_fit_from_a_configuration_file(strategy: str, vote: str, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"trainer:\n  strategy: {strategy}{TRAINER}")
    parameters, votes = zip(*run_workers(_fit, 2, str(config)), strict=True)
    assert same_on_all(parameters)
    assert votes == (vote, vote)
