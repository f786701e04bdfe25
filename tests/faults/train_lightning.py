"""The same with a Trainer."""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_signvr import Signum, SignVoteStrategy
from tests.faults.faults import Fault
from tests.faults.problem import TIMEOUT, WORKERS, keep_end, log_start, loss_of, make_net, parse


class Model(L.LightningModule):
    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self.options = options
        self.net = make_net()

    def configure_optimizers(self) -> Signum:
        return Signum(self.parameters(), lr=0.01)

    def on_train_start(self) -> None:
        self.fault = Fault(self.options, self.global_rank, self.net)
        if self.global_rank == 0:
            log_start(self.options, self.trainer.world_size, self.global_step)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.fault.begin_step(self.global_step)
        if self.trainer.world_size == 2:
            time.sleep(self.options.pause)
        return loss_of(self.net, self.global_rank, self.global_step)


def train(options: argparse.Namespace) -> None:
    trainer = L.Trainer(
        accelerator="cpu",
        # torchrun says how many there are, where machines come and go
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", WORKERS)),
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", 1)),
        strategy=SignVoteStrategy(topology="two_phase", on_resize="mean", timeout=TIMEOUT),
        max_steps=options.steps,
        callbacks=[ModelCheckpoint(options.folder, every_n_train_steps=options.every, save_last=True)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Model(options)
    trainer.fit(model, DataLoader(range(10**6)), ckpt_path="last")
    keep_end(options, trainer.global_rank, model.net, trainer.optimizers[0])


if __name__ == "__main__":
    train(parse())
