"""Lightning's own demo modules, imported as they are, under ``Trainer(strategy="sign_vote")``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.demos.boring_classes import (
    BoringDataModule,
    BoringModel,
    DemoModel,
    ManualOptimBoringModel,
    Net,
)
from lightning.pytorch.demos.lstm import LightningLSTM
from lightning.pytorch.demos.mnist_datamodule import MNISTDataModule
from lightning.pytorch.demos.transformer import LightningTransformer
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import interpolate, nll_loss

from lightning_signvr import Signum
from tests.strategies.helpers import make_trainer, parameters_of, same_on_all
from tests.workers import run_workers

WORKERS, STEPS, WORDS = 2, 6, 50


class Classifier(L.LightningModule):
    """Around the convolutional net of the demos, which is a plain module."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        return nll_loss(self.net(inputs), targets)

    def configure_optimizers(self) -> Signum:
        return Signum(self.parameters(), lr=0.001)


def mnist() -> MNISTDataModule:
    return MNISTDataModule(val_split=64, num_workers=0, batch_size=8)


class Demo(NamedTuple):
    module: Callable[[], L.LightningModule]
    data: Callable[[], L.LightningDataModule | None] = lambda: None
    deals_data: bool = True


DEMOS = {
    "BoringModel": Demo(BoringModel),  # torch's SGD
    "BoringModel, BoringDataModule": Demo(BoringModel, BoringDataModule),
    "ManualOptimBoringModel": Demo(ManualOptimBoringModel),
    "DemoModel": Demo(DemoModel, BoringDataModule),  # torch's Adam
    "LightningTransformer": Demo(lambda: LightningTransformer(vocab_size=WORDS + 1)),
    # Lightning deals no batch sampler of others to several workers
    "LightningLSTM": Demo(lambda: LightningLSTM(vocab_size=WORDS + 1), deals_data=False),
    "Net, MNISTDataModule": Demo(Classifier, mnist),
}


class End(NamedTuple):
    start: np.ndarray
    parameters: np.ndarray
    votes: int


def write_data(folder: Path) -> None:
    """Where the demos look before they download: a text of 50 words, and the digits of scikit-learn."""
    (folder / "data" / "MNIST" / "complete").mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(WORDS, (6000,), generator=generator)
    words[:WORDS] = torch.arange(WORDS)
    (folder / "data" / "wikitext-2.txt").write_text(" ".join(f"w{word}" for word in words))
    images, labels = (torch.as_tensor(values) for values in load_digits(return_X_y=True))
    enlarged = interpolate(images.float().view(-1, 1, 8, 8), 28).squeeze(1)
    for name in ("training.pt", "test.pt"):
        torch.save((enlarged[:256], labels[:256]), folder / "data" / "MNIST" / "complete" / name)


def train_all(rank: int, folder: str) -> dict[str, End]:
    os.chdir(folder)
    ends = {}
    for name, demo in DEMOS.items():
        torch.manual_seed(0)
        module = demo.module()
        trainer = make_trainer(max_steps=STEPS, limit_val_batches=2, use_distributed_sampler=demo.deals_data)
        start = parameters_of(module)
        trainer.fit(module, datamodule=demo.data())
        assert trainer.global_step == STEPS
        ends[name] = End(start, parameters_of(module), trainer.strategy.votes[0].step)
    return ends


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, End]]:
    folder = tmp_path_factory.mktemp("demos")
    write_data(folder)
    # without torchvision the data module takes its own reader
    return run_workers(train_all, WORKERS, str(folder), env={"PL_USE_MOCKED_MNIST": "1"})


@pytest.mark.slow
@pytest.mark.parametrize("name", DEMOS)
def test_the_demo_trains_by_votes(name: str, ends: list[dict[str, End]]) -> None:
    assert same_on_all(own[name].parameters for own in ends)
    assert [own[name].votes for own in ends] == [STEPS] * WORKERS
    assert np.isfinite(ends[0][name].parameters).all()
    assert not np.array_equal(ends[0][name].parameters, ends[0][name].start)
