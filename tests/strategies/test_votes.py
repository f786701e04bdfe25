"""Other votes than a majority under the strategy: given to the optimizer, or the kind that it needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.cli import LightningCLI

from lightning_signvr import Signum, SignVoteStrategy
from lightning_signvr.optimizers import Lion, SignOptimizer
from lightning_signvr.optimizers.efsignsgd import EFSignSGD
from lightning_signvr.optimizers.ssdm import SSDM
from lightning_signvr.voting import MeanVote, StochasticVote
from tests.strategies.helpers import LR, Regression, batches, fit, loader, parameters_of, same_on_all
from tests.strategies.test_cli import TRAINER
from tests.workers import run_workers

RULES = "(ties='positive', zeros='random', seed=7)"
OWN = "(ties='random', zeros='abstain', seed=3)"
OPTIMIZERS: dict[str, tuple[Callable[[Any], SignOptimizer], str]] = {
    "Lion(average=True)": (lambda parameters: Lion(parameters, LR, average=True), f"MeanVote{RULES}"),
    "Lion(vote=MeanVote)": (lambda parameters: Lion(parameters, LR, vote=MeanVote(seed=3)), f"MeanVote{OWN}"),
    "Signum(vote=StochasticVote)": (
        lambda parameters: Signum(parameters, LR, vote=StochasticVote(seed=3)),
        f"StochasticVote{OWN}",
    ),
    "SSDM": (lambda parameters: SSDM(parameters, LR), f"MeanVote{RULES}"),
    "EFSignSGD": (lambda parameters: EFSignSGD(parameters, LR), f"ScaledMeanVote{RULES}"),
}


def _fit(rank: int) -> dict[str, tuple[np.ndarray, str, int]]:
    results = {}
    for name, (make, _) in OPTIMIZERS.items():
        module = Regression(make, seed=rank)
        trainer = fit(module, batches(rank, 6), SignVoteStrategy(ties="positive", zeros="random", seed=7))
        [vote] = trainer.strategy.votes
        results[name] = parameters_of(module), repr(vote), vote.workers
    return results


def test_each_optimizer_votes_in_its_way() -> None:
    everyones = run_workers(_fit, 2)
    start = parameters_of(Regression(seed=0))
    for name, (_, expected) in OPTIMIZERS.items():
        parameters, votes, workers = zip(*(result[name] for result in everyones), strict=True)
        assert same_on_all(parameters), name
        assert not np.array_equal(parameters[0], start)
        assert votes == (expected, expected)
        assert workers == (2, 2)


class _Model(Regression):
    """Of LightningCLI: ``configure_optimizers`` comes from the configuration file."""

    configure_optimizers = None

    def __init__(self) -> None:
        super().__init__()

    def train_dataloader(self) -> Any:
        return loader(batches(self.global_rank, 3))


def _fit_from_file(rank: int, configs: list[str]) -> list[tuple[np.ndarray, str]]:
    results = []
    for config in configs:
        cli = LightningCLI(_Model, args=["fit", "--config", config], save_config_callback=None)
        [vote] = cli.trainer.strategy.votes
        results.append((parameters_of(cli.model), repr(vote)))
    return results


VOTES = {
    "average: true": "MeanVote(ties='random', zeros='abstain', seed=0)",
    "vote: {class_path: lightning_signvr.voting.MeanVote, init_args: {seed: 3}}": f"MeanVote{OWN}",
}


def test_lion_averages_from_a_configuration_file(tmp_path: Path) -> None:
    configs = []
    for number, option in enumerate(VOTES):
        configs.append(str(tmp_path / f"{number}.yaml"))
        Path(configs[-1]).write_text(
            f"trainer:\n  strategy: sign_vote{TRAINER}"
            f"optimizer:\n  class_path: lightning_signvr.optimizers.Lion\n  init_args:\n    {option}\n"
        )
    for (mine, vote), (others, _), expected in zip(
        *run_workers(_fit_from_file, 2, configs), VOTES.values(), strict=True
    ):
        assert np.array_equal(mine, others)
        assert vote == expected
