"""Train by majority vote in plain PyTorch: no Lightning, no DDP.

    python examples/plain_pytorch.py                                    one worker
    torchrun --standalone --nproc-per-node 2 examples/plain_pytorch.py  two workers on this machine

With --resume it goes on from its checkpoint, in which each worker has its own optimizer state.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist

from lightning_signvr import Signum
from lightning_signvr.optimizers.rank_states import with_rank_states


def train(steps: int, checkpoint: Path, resume: bool) -> None:
    rank = dist.get_rank() if dist.is_initialized() else 0
    torch.manual_seed(0)  # the same initial weights on all workers
    model = torch.nn.Linear(4, 1)
    optimizer = Signum(model.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=200)
    if resume:
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])  # each worker takes its own state
        schedule.load_state_dict(saved["schedule"])

    for _ in range(steps):
        # each worker its own data
        generator = torch.Generator().manual_seed(1_000_000 * rank + schedule.last_epoch)
        inputs = torch.randn(16, 4, generator=generator)
        loss = (model(inputs) - inputs.sum(1, keepdim=True)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()  # no DDP: gradients stay local
        optimizer.step()  # the only communication: one bit per parameter each way
        schedule.step()

    weights = [round(weight, 6) for weight in model.weight.flatten().tolist()]
    print(f"worker {rank}: loss {loss.item():.4f}, weights {weights}\n", end="", flush=True)
    state = with_rank_states(optimizer.state_dict(), torch.device("cpu"))  # all workers take part
    if rank == 0:
        torch.save(
            {"model": model.state_dict(), "optimizer": state, "schedule": schedule.state_dict()}, checkpoint
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint.pt"), help="default: %(default)s")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    arguments = parser.parse_args()
    if dist.is_torchelastic_launched():  # under torchrun; alone it trains too
        dist.init_process_group("gloo")
    train(arguments.steps, arguments.checkpoint, arguments.resume)
    if dist.is_initialized():
        dist.barrier()  # leave together: gloo may abort a worker whose peers are busy
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
