"""Clothes in small pictures, with the Lightning Trainer: two workers that send one bit per parameter.

    python examples/fashion_mnist.py

trains a small CNN on Fashion-MNIST (60,000 training images of 28x28 pixels) and prints, after a few
minutes:

    epoch 1: test accuracy 0.8880
    epoch 2: test accuracy 0.9002
    epoch 3: test accuracy 0.9103
    1404 steps of 2 workers
    bits_per_parameter  1.005
    savings_vs_fp32     31.831
    agreement           0.604
    Curves: tensorboard --logdir logs

The lines that make it a sign-vote program are marked with <--.
"""

from __future__ import annotations

import argparse
import gzip
import logging
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

import lightning_signvr as signvr
from lightning_signvr.optimizers import EFLion, Lion

OPTIMIZERS = {
    "signum": signvr.Signum,  # <--
    "lion": Lion,
    "eflion": EFLion,
    "adamw": torch.optim.AdamW,  # steps on voted signs; with --strategy ddp on averaged gradients
}
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
DOWNLOADED = Path("data")


def find(folder: Path | None = None) -> Path:
    """The folder with the data; by way of a download if torchvision is installed."""
    if folder is None and (DEBIAN / "train-images-idx3-ubyte.gz").exists():
        return DEBIAN
    if folder is None:
        try:
            from torchvision.datasets import FashionMNIST
        except ModuleNotFoundError:
            raise SystemExit(
                "Fashion-MNIST is not here. On Debian and Ubuntu: apt-get install dataset-fashion-mnist. "
                "Elsewhere: pip install torchvision, which downloads it. Or name its folder: --data FOLDER"
            ) from None
        FashionMNIST(DOWNLOADED, download=True)
        folder = DOWNLOADED / "FashionMNIST" / "raw"
    if not (folder / "train-images-idx3-ubyte.gz").exists():
        raise SystemExit(f"--data {folder}: there is no train-images-idx3-ubyte.gz in this folder")
    return folder


def read(folder: Path, part: str) -> TensorDataset:
    """Images of shape (1, 28, 28) in [0, 1] and labels; ``part`` is "train" or "t10k", the test."""
    kinds = {"images-idx3": 16, "labels-idx1": 8}  # with the length of the header
    images, labels = (
        np.frombuffer(gzip.decompress((folder / f"{part}-{kind}-ubyte.gz").read_bytes()), np.uint8)[header:]
        for kind, header in kinds.items()
    )
    pixels = torch.from_numpy(images.astype(np.float32)).view(-1, 1, 28, 28) / 255
    return TensorDataset(pixels, torch.from_numpy(labels.astype(np.int64)))


class Clothes(L.LightningModule):
    """An ordinary LightningModule with a CNN of 207,000 parameters."""

    def __init__(self, optimizer: str, lr: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * 7 * 7, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10),
        )  # fmt: skip
        self.accuracy = MulticlassAccuracy(num_classes=10, average="micro")

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.model(images), labels)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.accuracy(self.model(images), labels)
        self.log("accuracy/test", self.accuracy)

    def on_validation_epoch_end(self) -> None:
        self.print(f"epoch {self.current_epoch + 1}: test accuracy {self.accuracy.compute().item():.4f}")

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = OPTIMIZERS[self.hparams.optimizer](
            self.parameters(), lr=self.hparams.lr, weight_decay=0.01
        )
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the four files *-ubyte.gz")
    parser.add_argument("--workers", type=int, default=2, help="processes or GPUs; default: %(default)s")
    parser.add_argument("--accelerator", default="auto", help="cpu, gpu; default: %(default)s")
    parser.add_argument("--strategy", choices=["sign_vote", "ddp"], default="sign_vote")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="signum", help="default: %(default)s")
    parser.add_argument("--lr", type=float, default=1e-3, help="decays to 0; default: %(default)s")
    parser.add_argument("--epochs", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=64, help="per worker; default: %(default)s")
    parser.add_argument("--images", type=int, default=60_000, help="to train on; default: all %(default)s")
    parser.add_argument("--logs", type=Path, default=Path("logs"), help="folder; default: %(default)s")
    options = parser.parse_args()
    if options.strategy == "ddp" and issubclass(OPTIMIZERS[options.optimizer], signvr.SignOptimizer):
        parser.error(f"--strategy ddp is for --optimizer adamw: {options.optimizer} would vote after DDP")

    folder = find(options.data)
    L.seed_everything(0, verbose=False)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    train, test = read(folder, "train"), read(folder, "t10k")
    train = TensorDataset(*(tensor[: options.images] for tensor in train.tensors))
    monitor = signvr.SignVoteMonitor()
    trainer = L.Trainer(
        accelerator=options.accelerator,
        devices=options.workers,
        strategy=options.strategy,  # <--
        max_epochs=options.epochs,
        default_root_dir=options.logs,
        callbacks=[monitor],  # <--
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(
        Clothes(options.optimizer, options.lr),
        DataLoader(train, options.batch_size, shuffle=True, drop_last=True),
        DataLoader(test, 500),
    )
    if trainer.is_global_zero:
        seen = {
            key: round(value, 3) for key, value in monitor.summary().items()
        }  # nothing where nobody votes
        print(f"{trainer.global_step} steps of {options.workers} workers")
        for key in ("bits_per_parameter", "savings_vs_fp32", "agreement"):
            print(f"{key:20}{seen.get(key, '-')}")
        print(f"Curves: tensorboard --logdir {options.logs}")


if __name__ == "__main__":
    main()
