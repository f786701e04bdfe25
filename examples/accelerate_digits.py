"""Handwritten digits with Accelerate: two workers that send one bit per parameter.

    accelerate launch --config_file examples/accelerate_2_processes.yaml examples/accelerate_digits.py

trains a small CNN on scikit-learn's digits (1,797 real scans, 8x8 pixels, shipped in its wheel), on two
GPUs or in two processes on the CPU, and prints a line per epoch:

    epoch 8   loss 0.0731   test accuracy 0.978   1.03 bits/parameter, 31.1x less than fp32   agreement 0.40

The lines that make it a sign-vote script are marked with <--; what remains is any Accelerate script.
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_signvr.accelerate  # <--


def datasets() -> list[TensorDataset]:
    """For training and for the test."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)
    images, test_images, labels, test_labels = map(torch.tensor, split)
    return [
        TensorDataset(x.float().view(-1, 1, 8, 8) / 16, y)
        for x, y in ((images, labels), (test_images, test_labels))
    ]


def cnn() -> nn.Module:
    """About 26,000 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.1), nn.Linear(512, 40), nn.ReLU(), nn.Linear(40, 10),
    )  # fmt: skip


@torch.no_grad()
def accuracy(accelerator: Accelerator, model: nn.Module, loader: DataLoader) -> float:
    """On the data of all workers."""
    model.eval()
    right = [
        accelerator.gather_for_metrics(model(images).argmax(1) == labels).float() for images, labels in loader
    ]
    model.train()
    return torch.cat(right).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--accumulate", type=int, default=1, help="microbatches per step")
    parser.add_argument("--logs", help="folder for TensorBoard")
    parser.add_argument("--save", help="folder for a checkpoint after each epoch")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --save")
    options = parser.parse_args()

    set_seed(0)
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        gradient_accumulation_steps=options.accumulate,
        log_with="tensorboard" if options.logs else None,
        project_dir=options.logs,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),  # resumes with the same order
    )
    sv = lightning_signvr.accelerate.sign_vote(accelerator)  # <--
    if options.logs:
        accelerator.init_trackers("digits")
    train, test = datasets()
    model = cnn()
    optimizer = lightning_signvr.optimizers.SSVR(model.parameters(), lr=options.lr, beta=0.1)  # <--
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    model, optimizer, loader, test_loader = accelerator.prepare(
        model, optimizer, DataLoader(train, 32, shuffle=True), DataLoader(test, 128)
    )
    progress = Progress()
    accelerator.register_for_checkpointing(schedule, progress)
    if options.resume:
        accelerator.load_state(options.save)

    while progress.epoch < options.epochs:
        loader.set_epoch(progress.epoch)
        for images, labels in loader:
            with accelerator.accumulate(model):
                loss = sv.backward(lambda x=images, y=labels: nn.functional.cross_entropy(model(x), y))  # <--
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
                optimizer.zero_grad()
        schedule.step()
        progress.epoch += 1
        sv.average_buffers()
        report = {"loss": loss.item(), "accuracy": accuracy(accelerator, model, test_loader), **sv.metrics()}
        accelerator.log(report, step=progress.epoch)
        accelerator.print(
            f"epoch {progress.epoch}   loss {report['loss']:.4f}   test accuracy {report['accuracy']:.3f}   "
            f"{report['comm/bits_per_parameter']:.2f} bits/parameter, "
            f"{report.get('comm/savings_vs_fp32', 1):.1f}x less than fp32   "
            f"agreement {report['sign_vote/agreement']:.2f}"
        )
        if options.save:
            accelerator.save_state(options.save)
    accelerator.end_training()


class Progress:
    """How many epochs are done."""

    epoch = 0

    def state_dict(self) -> dict[str, int]:
        """To be saved."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """What was saved."""
        self.epoch = state["epoch"]


if __name__ == "__main__":
    main()
