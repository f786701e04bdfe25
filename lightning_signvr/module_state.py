"""Keep what is not voted on the same on all ranks: the initial state, and float buffers."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from lightning_signvr.voting.failures import explained


def _alone() -> bool:
    return not dist.is_initialized() or dist.get_world_size() == 1


@torch.no_grad()
def broadcast_state(module: nn.Module) -> None:
    """Give all ranks rank 0's parameters and buffers, bit for bit; a collective."""
    if _alone():
        return
    for tensor in (*module.parameters(), *module.buffers()):
        contiguous = tensor.detach().contiguous()
        with explained("giving all ranks the first one's parameters", None):
            dist.broadcast(contiguous, src=0)
        if contiguous.data_ptr() != tensor.data_ptr():
            tensor.copy_(contiguous)


@torch.no_grad()
def average_buffers(module: nn.Module) -> None:
    """Replace floating-point buffers (BatchNorm's statistics) by their mean over the ranks; a collective.

    The mean is rank 0's value plus the mean difference from it, so that values that are the same
    everywhere stay as they are to the last bit. NaN and inf of a rank whose batch had some are left out of
    it; where no rank has a finite value, rank 0's is taken.
    """
    if _alone():
        return
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    if not buffers:
        return
    mine = torch.cat([buffer.detach().double().reshape(-1) for buffer in buffers])
    first = mine.clone()
    with explained("averaging buffers", None):
        dist.broadcast(first, src=0)
        reference, finite = first.nan_to_num(0.0, 0.0, 0.0), mine.isfinite()
        sums = torch.stack([torch.where(finite, mine - reference, 0.0), finite.double()])
        dist.all_reduce(sums)
    differences, ranks = sums
    means = torch.where(ranks > 0, reference + differences / ranks, first)
    for buffer, mean in zip(buffers, torch.split(means, [buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(mean.view(buffer.shape))
