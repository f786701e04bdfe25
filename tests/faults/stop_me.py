"""A program that trains until a signal stops it: ``stop_me.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from tests.strategies.helpers import QUIET, Regression, batches, loader

FOLDER = Path(sys.argv[1])


class Started(Callback):
    """Say so when workers vote."""

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == 3:
            (FOLDER / f"started-{trainer.global_rank}").touch()


if __name__ == "__main__":
    checkpoint = ModelCheckpoint(FOLDER, save_last=True, save_on_exception=True, every_n_train_steps=10**9)
    options = {**QUIET, "enable_checkpointing": True, "devices": 2, "max_epochs": -1}
    trainer = L.Trainer(strategy="sign_vote", callbacks=[Started(), checkpoint], **options)
    trainer.fit(Regression(), loader(batches(0, 1000)))
