"""LightningCLI: what is trained is code, how it is trained is YAML.

In this folder:

    python train.py fit --config trainer.yaml --config strategy.yaml --config optimizer.yaml
    python train.py fit --config trainer.yaml --config strategy.yaml --config callbacks.yaml
    python train.py fit --config trainer.yaml --config strategy.yaml --print_config
"""

from __future__ import annotations

import lightning
import torch
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Regression(lightning.LightningModule):
    """A small net that learns a sine; the optimizer comes from the configuration."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        loss = nn.functional.mse_loss(self.net(inputs), targets)
        self.log("loss", loss, prog_bar=True)
        return loss


class Sine(lightning.LightningDataModule):
    """Points of a plane, and the sine of the sum of their coordinates."""

    def __init__(self, points: int = 1024, batch_size: int = 32) -> None:
        super().__init__()
        self.points, self.batch_size = points, batch_size

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        inputs = 3 * torch.randn(self.points, 2, generator=torch.Generator().manual_seed(0))
        data = TensorDataset(inputs, inputs.sum(1, keepdim=True).sin())
        return DataLoader(data, batch_size=self.batch_size, shuffle=True)


if __name__ == "__main__":
    LightningCLI(Regression, Sine)
