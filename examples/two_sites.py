"""Two sites joined by a slow link: DDP in fp32 beside one-bit votes, for the same time.

    python examples/two_sites.py

makes two hosts of network namespaces (Linux, as root) with a link of 100 Mbit/s between them. There the
Lightning Trainer trains the same CNN of 3.2 million parameters on scikit-learn's digits (1,797 real scans,
32 at a time on each site), once with DDP and AdamW, once with sign_vote and Signum:

    30 s of training each, over 100mbit
                         steps   seconds/step   sent/step   test accuracy
    ddp, AdamW              27          1.120    12.72 MB           0.840
    sign_vote, Signum      542          0.055     0.41 MB           0.980

What is sent is counted at site 0's network interface. Each learning rate is the best of three in runs of
15 s (AdamW 3e-4, 1e-3, 3e-3: accuracy 0.551, 0.609, 0.504; Signum 1e-4, 3e-4, 1e-3: 0.898, 0.967, 0.971).
Both have one core per site, and other programs ran beside them.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from pathlib import Path

import lightning as L
import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_signvr as signvr

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))
from network import Network, NetworkUnavailableError, wait_for

SITES, BATCH = 2, 32
SENT = Path("/sys/class/net/eth0/statistics/tx_bytes")


class Digits(L.LightningModule):
    """An ordinary LightningModule; the optimizer is given."""

    def __init__(self, optimizer: type[torch.optim.Optimizer], lr: float) -> None:
        super().__init__()
        self.optimizer, self.lr = optimizer, lr
        self.model = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64 * 4 * 4, 2048), nn.ReLU(),
            nn.Linear(2048, 512), nn.ReLU(), nn.Linear(512, 10),
        )  # fmt: skip

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.model(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters(), lr=self.lr)


class Meter(L.Callback):
    """Time and bytes sent since the end of the first step, in which everything is set up."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        now = (time.perf_counter(), int(SENT.read_text()))
        if trainer.global_step == 1:
            self.first = now
        self.last = now

    def per_step(self, steps: int) -> tuple[float, float]:
        """Seconds and bytes."""
        seconds, sent = (last - first for first, last in zip(self.first, self.last, strict=True))
        return seconds / (steps - 1), sent / (steps - 1)


def train(strategy: str, seconds: float, lr: float) -> None:
    """One site: train for a time; site 0 prints the result."""
    torch.set_num_threads(1)
    logging.disable(logging.INFO)  # Lightning's remarks on GPUs and processes
    warnings.filterwarnings("ignore", ".*does not have many workers")
    L.seed_everything(0, verbose=False)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    training, test = train_test_split(range(len(labels)), test_size=0.25, stratify=labels, random_state=0)
    loader = DataLoader(
        TensorDataset(images[training], labels[training]), BATCH, shuffle=True, drop_last=True
    )

    module = Digits(torch.optim.AdamW if strategy == "ddp" else signvr.Signum, lr)
    meter = Meter()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        num_nodes=SITES,
        strategy=strategy,
        max_epochs=-1,
        max_time={"seconds": seconds},
        callbacks=[meter],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    if trainer.is_global_zero:
        with torch.no_grad():
            right = module.model(images[test]).argmax(1) == labels[test]
        per_step = meter.per_step(trainer.global_step)
        print(json.dumps([trainer.global_step, *per_step, right.float().mean().item()]))
    dist.barrier()  # leave together
    dist.destroy_process_group()


def compare(rate: str, seconds: float, lrs: dict[str, float]) -> None:
    """Print the table."""
    print(f"{seconds:g} s of training each, over {rate}")
    print(f"{'':20}{'steps':>6}{'seconds/step':>15}{'sent/step':>12}{'test accuracy':>16}", flush=True)
    for strategy, name in [("ddp", "ddp, AdamW"), ("sign_vote", "sign_vote, Signum")]:
        options = ["--train", strategy, "--seconds", str(seconds), "--lr", str(lrs[strategy])]
        with Network(SITES, rate) as network:
            printed = wait_for(network.start([__file__, *options]), timeout=10 * seconds + 120)
        steps, step, sent, accuracy = json.loads(printed[0].splitlines()[-1])
        print(f"{name:20}{steps:6}{step:15.3f}{sent / 1e6:9.2f} MB{accuracy:16.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rate", default="100mbit", help="of the link, as tc takes it (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=30, help="of training each (default: %(default)s)")
    parser.add_argument("--lr-ddp", type=float, default=1e-3, help="of AdamW (default: %(default)s)")
    parser.add_argument("--lr-vote", type=float, default=1e-3, help="of Signum (default: %(default)s)")
    for name, kind in (("--train", str), ("--lr", float)):  # what a site is started with
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(options.train, options.seconds, options.lr)
        return
    try:
        compare(options.rate, options.seconds, {"ddp": options.lr_ddp, "sign_vote": options.lr_vote})
    except NetworkUnavailableError as error:
        parser.error(f"two sites cannot be made here: {error}")  # status 2


if __name__ == "__main__":
    main()
