"""Handwritten digits with two workers that send one bit per parameter: the whole library in a page.

    python examples/digits.py --workers 2 --strategy sign_vote ddp

trains the same small CNN on scikit-learn's digits (1,797 real scans, 8x8 pixels, shipped in its
wheel), once with each strategy, and prints a table. Each strategy sees the same number of steps,
the same data order and the same initial weights.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

import lightning_signvr as signvr

OPTIMIZERS = {"signum": signvr.Signum, "signsgd": signvr.SignSGD, "adamw": torch.optim.AdamW}


class Digits(L.LightningModule):
    """An ordinary LightningModule: nothing in it knows about votes but the choice of optimizer."""

    def __init__(self, optimizer: str, lr: float, steps: int, averaged_gradients: bool = False) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(64 * 4 * 4, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10),
        )  # fmt: skip
        self.accuracy = MulticlassAccuracy(num_classes=10, average="micro")

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.model(images), labels)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.accuracy(self.model(images), labels)
        self.log("accuracy/validation", self.accuracy, prog_bar=True)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.accuracy(self.model(images), labels)
        self.log("accuracy/test", self.accuracy)

    def configure_optimizers(self) -> dict[str, object]:
        make = OPTIMIZERS[self.hparams.optimizer]
        options = {}
        if self.hparams.averaged_gradients and issubclass(make, signvr.SignOptimizer):
            options["vote"] = signvr.LocalVote()  # DDP has averaged the gradients: nothing to vote on
        optimizer = make(self.parameters(), lr=self.hparams.lr, **options)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.hparams.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def load_data(batch_size: int) -> tuple[DataLoader, DataLoader, DataLoader]:
    """Training, validation and test loaders; 1,077, 360 and 360 images."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    rest, test = train_test_split(range(len(labels)), test_size=360, stratify=labels, random_state=0)
    train, validation = train_test_split(rest, test_size=360, stratify=labels[rest], random_state=0)
    sets = [TensorDataset(images[part], labels[part]) for part in (train, validation, test)]
    return (
        DataLoader(sets[0], batch_size, shuffle=True, drop_last=True),
        DataLoader(sets[1], 360),
        DataLoader(sets[2], 360),
    )


def train(strategy: str, options: argparse.Namespace) -> dict[str, str]:
    """Train with one strategy; a row of the table."""
    L.seed_everything(options.seed, verbose=False)
    train_loader, validation_loader, test_loader = load_data(options.batch_size)
    module = Digits(options.optimizer, options.lr, options.steps, averaged_gradients=strategy != "sign_vote")
    monitor = signvr.SignVoteMonitor()
    trainer = L.Trainer(
        accelerator=options.accelerator,
        devices=options.workers,
        strategy=strategy,
        max_steps=options.steps,
        max_epochs=-1,
        logger=TensorBoardLogger(options.logs, name="digits", version=strategy),
        callbacks=[monitor, TQDMProgressBar(refresh_rate=20)],
        log_every_n_steps=5,
        check_val_every_n_epoch=5,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(module, train_loader, validation_loader)
    [result] = trainer.test(module, test_loader, verbose=False)
    summary = monitor.summary()

    def show(key: str, pattern: str) -> str:
        return pattern.format(summary[key]) if options.workers > 1 and summary.get("bytes_sent") else "-"

    return {
        "strategy": strategy,
        "optimizer": options.optimizer,
        "workers": str(options.workers),
        "steps": str(trainer.global_step),
        "test accuracy": f"{result['accuracy/test']:.4f}",
        "bits/parameter/step": show("bits_per_parameter", "{:.3f}"),
        "savings vs fp32": show("savings_vs_fp32", "{:.1f}x"),
        "sign agreement": show("agreement", "{:.3f}"),
    }


def print_table(rows: list[dict[str, str]]) -> None:
    """Print rows of equal keys as a table."""
    widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
    for row in [{key: key for key in widths}, {key: "-" * width for key, width in widths.items()}, *rows]:
        print("  ".join(row[key].ljust(width) for key, width in widths.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--strategy", nargs="+", default=["sign_vote"], choices=["sign_vote", "ddp"])
    parser.add_argument("--optimizer", default="signum", choices=sorted(OPTIMIZERS))
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps (default: 300)")
    parser.add_argument(
        "--lr", type=float, default=2e-3, help="first learning rate, decays to 0 (default: 2e-3)"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="per worker (default: 32)")
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--logs", type=Path, default=Path("logs"), help="folder of event files (default: logs)"
    )
    options = parser.parse_args()

    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    rows = [train(strategy, options) for strategy in options.strategy]
    if L.pytorch.utilities.rank_zero_only.rank == 0:
        print()
        print_table(rows)
        print(f"\nCurves: tensorboard --logdir {options.logs}")


if __name__ == "__main__":
    main()
