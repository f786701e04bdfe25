"""Each worker's own optimizer state in one checkpoint.

Workers estimate from their own data, so their states differ. Trainers save what rank 0 has: after
a resume every worker would go on with rank 0's estimator, and nothing would fail.
"""

from __future__ import annotations

import io
from typing import Any

import torch
import torch.distributed as dist

KEY = "rank_states"
FORMAT = 1


def with_rank_states(
    state_dict: dict[str, Any], device: torch.device, group: dist.ProcessGroup | None = None
) -> dict[str, Any]:
    """``state_dict`` with the states of all ranks added; a collective, complete on rank 0.

    What is added is plain: numbers, strings and tensors, which ``torch.load(weights_only=True)`` reads.
    The rest is rank 0's state dict as it is, so that any program can load that.

    Args:
        state_dict: of an optimizer, on each rank its own.
        device: where the group's backend can exchange tensors.
        group: the workers; None for all.

    Returns:
        A new dict. On ranks other than 0, and for a lone worker, just a copy.
    """
    if not dist.is_initialized() or dist.get_world_size(group) == 1:
        return dict(state_dict)
    buffer = io.BytesIO()
    torch.save(state_dict["state"], buffer)
    mine = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8).to(device)
    workers, rank = dist.get_world_size(group), dist.get_rank(group)
    sizes = [torch.empty(1, dtype=torch.int64, device=device) for _ in range(workers)]
    dist.all_gather(sizes, torch.tensor([mine.numel()], device=device), group=group)
    largest = max(int(size) for size in sizes)
    padded = torch.zeros(largest, dtype=torch.uint8, device=device)
    padded[: mine.numel()] = mine
    received = [torch.empty_like(padded) for _ in range(workers)] if rank == 0 else None
    dist.gather(padded, received, dst=0 if group is None else dist.get_global_rank(group, 0), group=group)
    if received is None:
        return dict(state_dict)
    states: list[Any] = [state_dict["state"]]
    for data, size in list(zip(received, sizes, strict=True))[1:]:
        stored = io.BytesIO(data[: int(size)].cpu().numpy().tobytes())
        states.append(torch.load(stored, map_location="cpu", weights_only=True))
    return {**state_dict, KEY: {"format": FORMAT, "world_size": workers, "states": states}}


def own_rank_state(state_dict: dict[str, Any], rank: int, workers: int) -> dict[str, Any]:
    """The state dict of ``rank`` out of one from :func:`with_rank_states`.

    Raises:
        RuntimeError: it is of another number of workers, or of a newer format.
    """
    saved = state_dict.get(KEY)
    plain = {name: value for name, value in state_dict.items() if name != KEY}
    if saved is None and workers == 1:
        return plain
    if saved is not None and saved["format"] > FORMAT:
        raise RuntimeError(
            f"the checkpoint's optimizer state has format {saved['format']}, this version reads up to "
            f"{FORMAT}: update lightning-signvr"
        )
    there = 1 if saved is None else saved["world_size"]
    if there != workers:
        raise RuntimeError(
            f"the checkpoint holds the optimizer states of {there} worker(s), and this run has {workers}: "
            f"resume with {there}, or start the optimizer anew from the checkpoint's weights "
            "(Lightning: Model.load_from_checkpoint(path), then fit without ckpt_path; Fabric: "
            'fabric.load(path, {"model": model}))'
        )
    assert saved is not None
    return {**plain, "state": saved["states"][rank]}
