"""The mean of numbers in full precision, at the owners alone: for when one bit would not do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_signvr.signs.finite import is_finite
from lightning_signvr.voting.decisions import ShardBallots
from lightning_signvr.voting.traffic import Traffic


def average_at_owners(
    tensors: Sequence[Tensor | None],
    ballots: ShardBallots,
    traffic: Traffic,
    group: dist.ProcessGroup | None,
) -> Tensor:
    """The workers' mean of ``tensors`` on this rank's shard; a collective, a reduce-scatter.

    Each rank sends ``32 (n - 1) / n`` bits per parameter. The owner adds in the order of the ranks, so that
    the mean is the same to the last bit in every run. While it lasts it takes two float32 copies of all
    tensors.

    Args:
        tensors: this rank's, of any floating-point dtype and of the layout's sizes; sent in float32. None
            counts as 0.
        ballots: of the vote that it is a part of, which all ranks have received.
        traffic: where the bytes are counted.
        group: the ranks.

    Returns:
        float32, an element for each bit of the shard; 0 for padding.

    Raises:
        ValueError: the tensors are not the layout's.
        RuntimeError: a rank sent NaN or inf, which would stay in the owner's state.
    """
    layout, (workers, shard) = ballots.layout, ballots.votes.shape
    sizes, numels = [None if tensor is None else tensor.numel() for tensor in tensors], layout.numels
    if len(sizes) != len(numels) or any(
        size not in (None, numel) for size, numel in zip(sizes, numels, strict=True)
    ):
        raise ValueError(f"exact has tensors of {sizes} elements, and the vote is on {list(numels)}")
    sent = torch.zeros(workers, 8 * shard, device=ballots.votes.device)
    for index, tensor in enumerate(tensors):
        if tensor is not None:
            first = 8 * layout.offsets[index]
            sent.view(-1)[first : first + tensor.numel()] = tensor.detach().reshape(-1)
    received = sent
    if workers > 1:
        received = torch.empty_like(sent)
        traffic.all_to_all(received, sent, group).wait()
    for rank, row in enumerate(received):
        if not is_finite(row):
            raise RuntimeError(
                f"rank {rank} sent a gradient in full precision that has NaN or inf: look at that "
                "worker's data, or lower the learning rate"
            )
    mean = received[0].clone()  # lets go of the others
    for row in received[1:]:
        mean += row
    return mean.div_(workers)
