"""Compare what the ranks are about to vote on."""

from __future__ import annotations

import torch
import torch.distributed as dist

from lightning_signvr.voting.failures import forget_report
from lightning_signvr.voting.layout import Layout
from lightning_signvr.voting.traffic import Traffic


def check_agreement(
    layout: Layout,
    rules: object,
    step: int,
    device: torch.device,
    workers: int,
    group: dist.ProcessGroup | None,
    traffic: Traffic,
) -> None:
    """Compare layout and rules before the first vote: unequal sizes could not be exchanged; a collective.

    Args:
        layout: of this rank's tensors.
        rules: whatever the ranks must agree on.
        step: of the vote.
        device: of tensors that the group can exchange.
        workers: in the group.
        group: the ranks; None for all.
        traffic: where the bytes are counted.

    Raises:
        RuntimeError: they differ, with what each rank has.
    """
    digest = layout.digest(rules) >> 1  # fits int64
    mine = torch.tensor([digest, len(layout.numels), layout.num_parameters, step], device=device)
    everyones = mine.new_empty(workers, 4)
    forget_report()
    with traffic.unverified():  # whether checksums travel is one of the rules
        traffic.all_gather(everyones, mine, group).wait()
    if bool((everyones == everyones[0]).all()):
        return
    lines = [
        f"rank {rank}: {tensors} tensors, {parameters} parameters, step {step}, fingerprint {digest:x}"
        for rank, (digest, tensors, parameters, step) in enumerate(everyones.tolist())
    ]
    raise RuntimeError(
        "the ranks do not vote on the same tensors by the same rules (ties, zeros, seed) at the same "
        "step; build the model, the optimizer and the vote in the same way on all of them:\n  "
        + "\n  ".join(lines)
    )
