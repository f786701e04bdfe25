"""The process group that votes: who is in it, and whether it can carry the votes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

if dist.is_available():
    # Its default arguments keep the process group that is there when it is imported, and torch.optim imports
    # it at a first step. A group kept like that outlives destroy_process_group(), and gloo's threads with it,
    # which may abort the process as it ends. So before there is a group.
    import torch.distributed.nn.functional


def world(group: dist.ProcessGroup | None) -> tuple[int, int]:
    """This process' rank in ``group`` and the number of its ranks; (0, 1) without a process group.

    Raises:
        ValueError: this process is not in ``group``.
    """
    if not dist.is_available() or not dist.is_initialized():
        return 0, 1
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError(
            "process_group does not contain this rank: pass the group that this rank belongs to, or "
            "build no vote here"
        )
    return rank, dist.get_world_size(group)


def check_backend(group: dist.ProcessGroup | None, device: torch.device) -> None:
    """Refuse tensors that the group's backend cannot exchange.

    Raises:
        ValueError: no backend for ``device``, with the remedy.
    """
    backends = dict(
        item.split(":", 1) for item in str(dist.get_backend_config(group)).split(",") if ":" in item
    )
    check_backend_for(device, backends)


def check_backend_for(device: torch.device, backends: dict[str, str]) -> None:
    """:func:`check_backend` on a map from device types to backends."""
    backend = backends.get(device.type)
    if backend is None or (backend == "gloo" and device.type != "cpu"):
        have = ", ".join(sorted({f"{name} for {kind}" for kind, name in backends.items()}))
        wanted = "gloo" if device.type == "cpu" else "nccl" if device.type == "cuda" else "a backend"
        raise ValueError(
            f"process_group cannot exchange tensors on {device.type!r} (it has {have}): initialise it "
            f"with {wanted} for {device.type} (for both kinds of tensor: "
            f'init_process_group("cpu:gloo,cuda:nccl")), or move the model to another device'
        )


def group_of_its_own(
    group: dist.ProcessGroup | None, parts: Sequence[Sequence[int]] | None = None
) -> dist.ProcessGroup:
    """A new group of the same ranks, backend and time-out, or of a part of them; a collective of them all.

    No other code uses it, so that collectives may start in it whenever a rank is ready for them.

    Args:
        group: whose.
        parts: its ranks, as the whole job numbers them, in several parts, each of which gets a group.

    Returns:
        The one that this rank is in.
    """
    default = dist.group.WORLD if group is None else group
    assert default is not None
    options = default._get_backend(torch.device(_device_type(group))).options
    whole, rank = default is dist.group.WORLD, dist.get_rank()
    own: dist.ProcessGroup | None = None
    for part in [dist.get_process_group_ranks(default)] if parts is None else parts:
        if not whole and rank not in part:
            continue
        made = dist.new_group(
            list(part),
            timeout=options._timeout,
            backend=dist.get_backend_config(group),
            use_local_synchronization=not whole,
        )
        own = made if rank in part else own
    assert own is not None
    return own


def _device_type(group: dist.ProcessGroup | None) -> str:
    """Of tensors that the group can exchange."""
    return str(dist.get_backend_config(group)).split(",")[0].split(":")[0]
