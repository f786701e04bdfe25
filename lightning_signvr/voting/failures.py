"""Say which ranks are missing when a collective fails: the backend's own message names none."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import torch.distributed as dist

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

GRACE = 10.0
"""Seconds in which the other ranks can report that they failed as well."""

LAST = 2.0
"""Seconds in which the last of them can, when all others have: it is likely to be the missing one."""

_PREFIX = "lightning_signvr/failures"


@contextmanager
def explained(purpose: str, group: dist.ProcessGroup | None) -> Iterator[None]:
    """What the block's collectives raise where they fail names the ranks that are missing.

    Each rank that fails says so in the store through which the process group was set up, and looks there for
    the others: within ``GRACE`` seconds, or ``LAST`` when one is left.

    Args:
        purpose: what the collectives are for, for the message.
        group: their group; None for all ranks.

    Raises:
        RuntimeError: a collective failed or timed out.
    """
    try:
        yield
    except CollectiveError:
        raise
    except RuntimeError as error:
        raise CollectiveError(f"{purpose} failed: {_what_happened(purpose, group)} ({error})") from error


def forget_report() -> None:
    """Take back what this rank said before a restart: torchrun may keep the store over restarts."""
    with suppress(RuntimeError):
        _store().delete_key(str(dist.get_rank()))


class CollectiveError(RuntimeError):
    """A collective failed: a rank died or hangs, or a connection broke."""


def _what_happened(purpose: str, group: dist.ProcessGroup | None) -> str:
    if not dist.is_initialized():
        return "the process group is gone"
    rank, ranks = dist.get_rank(), dist.get_process_group_ranks(group or dist.group.WORLD)
    reports: dict[int, str] = {rank: purpose}
    unreachable: list[str] = []

    def ask() -> None:
        try:
            _collect(rank, ranks, reports)
        except RuntimeError as error:
            unreachable.append(str(error).splitlines()[0])

    # beside this thread: a store whose process has stopped answers never
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(GRACE + LAST)
    if unreachable or (asking.is_alive() and len(reports) == 1):
        reason = unreachable[0] if unreachable else "it does not answer"
        return (
            f"the store through which the ranks met cannot be reached ({reason}). Without torchrun that is "
            "rank 0's: rank 0 was killed, ended or hangs; see its own output"
        )
    missing = [other for other in ranks if other not in reports]
    if missing:
        names, are = ", ".join(map(str, missing)), "killed, ended or stuck elsewhere"
        if len(missing) == 1:
            return f"no sign of life from rank {names}: {are}; see the output there"
        # gloo gathers in a ring, in which a rank that is beside none of the missing ones just waits
        return f"no sign of life from ranks {names}: {are}, or some wait for the others; see the output there"
    lines = "\n  ".join(f"rank {other}: {reports[other]}" for other in sorted(reports))
    return (
        "all ranks report the failure, so that the connection between them broke, or they were not in the "
        f"same collective:\n  {lines}\n"
    )


def _collect(rank: int, ranks: list[int], reports: dict[int, str]) -> None:
    """Report this rank's failure, and add what the others report."""
    store = _store()
    store.set(str(rank), reports[rank])
    end, one_is_left = time.monotonic() + GRACE, False
    while len(reports) < len(ranks) and time.monotonic() < end:
        if len(reports) == len(ranks) - 1 and not one_is_left:
            end, one_is_left = min(end, time.monotonic() + LAST), True
        for other in ranks:
            if other not in reports and store.check([str(other)]):
                reports[other] = store.get(str(other)).decode(errors="replace")
        time.sleep(0.05)


def _store() -> Store:
    """Of the process group, for reports."""
    # here, as not every torch has them
    from torch._C._distributed_c10d import PrefixStore
    from torch.distributed import distributed_c10d

    return PrefixStore(_PREFIX, distributed_c10d._get_default_store())
