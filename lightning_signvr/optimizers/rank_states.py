"""Each worker's own optimizer state in one checkpoint.

Workers estimate from their own data, so their states differ. Trainers save what rank 0 has: after
a resume every worker would go on with rank 0's estimator, and nothing would fail.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.distributed as dist

from lightning_signvr.optimizers.resizing import OnResize, check_on_resize, merged
from lightning_signvr.optimizers.state_exchange import Peer
from lightning_signvr.optimizers.state_trees import checksum

log = logging.getLogger(__name__)

KEY = "rank_states"
FORMAT = 2
"""1 had no checksums, and nothing was added for a lone worker."""


def with_rank_states(
    state_dict: dict[str, Any], device: torch.device, group: dist.ProcessGroup | None = None
) -> dict[str, Any]:
    """``state_dict`` with the states of all ranks added; a collective, complete on rank 0.

    What is added is plain: numbers, strings and tensors, which ``torch.load(weights_only=True)`` reads.
    The rest is rank 0's state dict as it is, so that any program can load that. Rank 0 holds all states, as
    the file does, and beside them no more than a tensor.

    Args:
        state_dict: of an optimizer, on each rank its own.
        device: where the group's backend can exchange tensors.
        group: the workers; None for all.

    Returns:
        A new dict. On ranks other than 0 just a copy.

    Raises:
        RuntimeError: what a rank sends is no state of such an optimizer.
    """
    own = state_dict["state"]
    workers, rank = (dist.get_world_size(group), dist.get_rank(group)) if dist.is_initialized() else (1, 0)
    if rank > 0:
        Peer(0, device, group).send([own, checksum(own)])
        return dict(state_dict)
    parameters = sum(len(group["params"]) for group in state_dict["param_groups"])
    received = [_received(Peer(other, device, group), parameters) for other in range(1, workers)]
    states, checksums = zip([own, checksum(own)], *received, strict=True)
    everything = {"format": FORMAT, "world_size": workers, "states": list(states)}
    return {**state_dict, KEY: {**everything, "checksums": list(checksums)}}


def _received(peer: Peer, parameters: int) -> list[Any]:
    """A peer's state and its checksum."""
    sent = peer.receive(parameters)
    if not (isinstance(sent, list) and [type(part) for part in sent] == [dict, int]):
        raise peer.refusal("it is not a dict and a checksum")
    return sent


def own_rank_state(
    state_dict: dict[str, Any], rank: int, workers: int, on_resize: OnResize = "error"
) -> dict[str, Any]:
    """The state dict of ``rank`` out of one from :func:`with_rank_states`.

    Args:
        state_dict: of all workers; without their states it is taken for a lone worker's.
        rank: of this worker.
        workers: how many there are.
        on_resize: what to do where it is of another number of workers, see :func:`resized`.

    Raises:
        RuntimeError: it is of another number of workers and ``on_resize="error"``, of a newer format, or
            damaged.
    """
    if _count(state_dict) != workers:
        state_dict = resized(state_dict, workers, on_resize)
    plain = {name: value for name, value in state_dict.items() if name != KEY}
    return {**plain, "state": _checked_states(state_dict, [rank])[0]} if KEY in state_dict else plain


def resized(state_dict: dict[str, Any], workers: int, on_resize: OnResize) -> dict[str, Any]:
    """The states of another number of workers than saved, for ``load_state_dict``; said in the log.

    The hyper-parameters and the count of steps are kept as they are.

    Args:
        state_dict: from :func:`with_rank_states`.
        workers: how many there are now.
        on_resize: ``"mean"``: every worker starts with the mean of the saved states, see
            :func:`~lightning_signvr.optimizers.resizing.merged`. ``"reset"``: with none, as a new optimizer
            does. ``"error"``: raise.

    Returns:
        A new dict. With the number of workers that was saved: the same states.

    Raises:
        ValueError: an unknown ``on_resize``.
        RuntimeError: another number of workers and ``"error"``, a newer format, or a damaged state.

    Example:
        >>> from lightning_signvr import Signum
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = Signum([weight], lr=0.5)
        >>> saved = with_rank_states(optimizer.state_dict(), torch.device("cpu"))
        >>> saved["rank_states"]["world_size"], resized(saved, 3, "mean")["rank_states"]["world_size"]
        (1, 3)
    """
    check_on_resize(on_resize)
    there = _count(state_dict)
    if there == workers:
        return dict(state_dict)
    if on_resize == "error":
        raise RuntimeError(
            f"the checkpoint holds the optimizer states of {there} worker(s), and this run has {workers}: "
            f'resume with {there}, or choose what becomes of their states by on_resize="mean" or "reset" '
            f'(SignVoteStrategy(on_resize=...); in plain PyTorch load resized(state_dict, {workers}, "mean") '
            "from lightning_signvr.optimizers.rank_states), or start the optimizer anew from the weights"
        )
    states = _checked_states(state_dict, range(there)) if KEY in state_dict else [state_dict["state"]]
    state = merged(states) if on_resize == "mean" else {}
    say_resized(there, workers, on_resize)
    everything = {"format": FORMAT, "world_size": workers, "states": [state] * workers}
    groups = state_dict["param_groups"]
    if on_resize == "reset":
        groups = [renewed(group) for group in groups]
    sums = [checksum(state)] * workers
    return {**state_dict, "state": state, "param_groups": groups, KEY: {**everything, "checksums": sums}}


def renewed(group: dict[str, Any]) -> dict[str, Any]:
    """A parameter group without its claim on state: a snapshot is due again."""
    return {**group, "snapshot_step": None} if "snapshot_step" in group else group


def say_resized(there: int, workers: int, on_resize: OnResize) -> None:
    """Log it, on one worker."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        what = "the mean of the saved states" if on_resize == "mean" else "an empty state"
        log.warning(
            "sign_vote: the checkpoint is of %d worker(s), this run has %d: each optimizer starts with %s "
            '(on_resize="%s")',
            there,
            workers,
            what,
            on_resize,
        )


def _count(state_dict: dict[str, Any]) -> int:
    """Of how many workers it is."""
    if KEY not in state_dict:
        return 1
    saved = state_dict[KEY]
    if saved["format"] > FORMAT:
        raise RuntimeError(
            f"the checkpoint's optimizer state has format {saved['format']}, this version reads up to "
            f"{FORMAT}: update lightning-signvr"
        )
    count: int = saved["world_size"]
    return count


def _checked_states(state_dict: dict[str, Any], ranks: Any) -> list[Any]:
    saved = state_dict[KEY]
    states, checksums = saved["states"], saved.get("checksums")
    for rank in ranks:
        if checksums is not None and checksum(states[rank]) != checksums[rank]:
            raise RuntimeError(
                f"the checkpoint's optimizer state of worker {rank} is damaged, its checksum differs: use an "
                "earlier checkpoint, or start the optimizer anew from the weights"
            )
    return [states[rank] for rank in ranks]
