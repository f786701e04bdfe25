"""A loop of one's own that goes on from its last checkpoint, whatever number of workers there is now."""

from __future__ import annotations

import argparse
import time

import torch
import torch.distributed as dist

from lightning_signvr import MajorityVote, Signum
from lightning_signvr.checkpoint_files import load, save
from lightning_signvr.optimizers.rank_states import resized, with_rank_states
from tests.faults.faults import Fault
from tests.faults.problem import TIMEOUT, keep_end, log_start, loss_of, make_net, parse


def train(options: argparse.Namespace) -> None:
    rank, workers = dist.get_rank(), dist.get_world_size()
    net = make_net()
    optimizer = Signum(net.parameters(), lr=0.01, vote=MajorityVote(topology="two_phase"))
    checkpoint, first = options.folder / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = load(checkpoint)
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(resized(saved["optimizer"], workers, "mean"))
        first = saved["step"]
    if rank == 0:
        log_start(options, workers, first)
    fault = Fault(options, rank, net)
    for step in range(first, options.steps):
        fault.begin_step(step)
        if workers == 2:
            time.sleep(options.pause)
        optimizer.zero_grad()
        loss_of(net, rank, step).backward()
        optimizer.step()
        if (step + 1) % options.every == 0:
            states = with_rank_states(optimizer.state_dict(), torch.device("cpu"))
            if rank == 0:
                save({"net": net.state_dict(), "optimizer": states, "step": step + 1}, checkpoint)
    keep_end(options, rank, net, optimizer)


def main() -> None:
    options = parse()
    dist.init_process_group("gloo", timeout=TIMEOUT)
    train(options)
    dist.barrier()  # leave together
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
