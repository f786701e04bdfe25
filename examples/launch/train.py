"""A program for several machines, with Lightning: it is told their number and that of the workers on each.

Slurm:    sbatch examples/launch/slurm_lightning.sbatch
torchrun: on each machine, with NODE_RANK, MASTER_ADDR and NPROC_PER_NODE=4 in the environment,
          examples/launch/torchrun.sh examples/launch/train.py --nodes 2 --devices 4
neither:  on each machine, with NODE_RANK, MASTER_ADDR and MASTER_PORT in the environment,
          python examples/launch/train.py --nodes 2 --devices 4

Started again, it goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

import lightning_signvr as signvr


class Regression(L.LightningModule):
    """Put your own here."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        inputs, targets = batch
        return torch.nn.functional.mse_loss(self.net(inputs), targets)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return signvr.Signum(self.parameters(), lr=1e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, required=True, help="machines")
    parser.add_argument("--devices", type=int, required=True, help="workers on each machine")
    parser.add_argument("--steps", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--folder", default="runs", help="seen by all machines (default: %(default)s)")
    options = parser.parse_args()

    L.seed_everything(0, verbose=False)
    inputs = torch.randn(4096, 8)
    data = TensorDataset(inputs, inputs.sin().sum(1, keepdim=True))
    monitor = signvr.SignVoteMonitor()
    trainer = L.Trainer(
        num_nodes=options.nodes,
        devices=options.devices,
        strategy="sign_vote",
        max_steps=options.steps,
        callbacks=[monitor, ModelCheckpoint(options.folder, every_n_train_steps=50, save_last=True)],
        logger=False,
        enable_progress_bar=False,
    )
    trainer.fit(Regression(), DataLoader(data, 32, shuffle=True), ckpt_path="last")
    print(
        f"worker {trainer.global_rank} of {trainer.world_size}, number {trainer.local_rank} on machine "
        f"{trainer.node_rank}: {trainer.global_step} steps, "
        f"{monitor.summary().get('bits_per_parameter', 0.0):.2f} bits/parameter\n",
        end="",
        flush=True,
    )


if __name__ == "__main__":
    main()
