"""Votes are counted."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_signvr.signs.triton_kernels.launch import launch

_BYTES = 1024  # of a plane, that one program works on


@triton.jit
def tally_kernel(
    rows, absences, negative, tied, silent, counts, voters, size, stride, absence_stride,
    ABSTAIN: tl.constexpr, TIES: tl.constexpr, BYTES: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """The majority of each coordinate, and each program's four sums of :class:`Counts` in ``counts``.

    One bit of every byte after the other, so that each thread works on its own bytes alone; that the votes
    are read eight times does not matter, since they lie in the cache.
    """
    column = tl.program_id(0).to(tl.int64) * BYTES + tl.arange(0, BYTES)
    used = column < size
    none = tl.zeros((BYTES,), tl.int32)
    outcome, equal, quiet, cast, margins, ties, silences = none, none, none, none, none, none, none
    for bit in tl.static_range(8):
        against, votes = none, none
        for voter in range(voters):
            row = tl.cast(voter, tl.int64)
            votes_here = tl.load(rows + row * stride + column, mask=used, other=0).to(tl.int32)
            if ABSTAIN:
                absent = tl.load(absences + row * absence_stride + column, mask=used, other=255).to(tl.int32)
                votes += ~absent >> bit & 1
                votes_here = votes_here & ~absent
            against += votes_here >> bit & 1
        if not ABSTAIN:
            votes += voters
        margin = votes - 2 * against
        nobody = (votes == 0).to(tl.int32)
        tie = (margin == 0).to(tl.int32) - nobody
        outcome += (margin < 0).to(tl.int32) << bit
        equal += tie << bit
        quiet += nobody << bit
        cast += votes
        margins += tl.abs(margin)
        ties += tie
        silences += nobody
    tl.store(negative + column, outcome.to(tl.uint8), mask=used)
    if TIES:
        tl.store(tied + column, equal.to(tl.uint8), mask=used)
    if ABSTAIN:
        tl.store(silent + column, quiet.to(tl.uint8), mask=used)
    sums = counts + 4 * tl.program_id(0)
    tl.store(sums, tl.sum(tl.where(used, cast, 0), 0))
    tl.store(sums + 1, tl.sum(tl.where(used, margins, 0), 0))
    tl.store(sums + 2, tl.sum(tl.where(used, ties, 0), 0))
    tl.store(sums + 3, tl.sum(tl.where(used, silences, 0), 0))


def count(
    rows: Tensor, abstaining: Tensor | None, ties: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """The planes of a :class:`~lightning_signvr.signs.Tally` and the sums of its counts.

    Args:
        rows, abstaining: as of :func:`~lightning_signvr.signs.majority`.
        ties: whether to write where votes are tied.

    Returns:
        negative, tied (None without ``ties``), silent (None without ``abstaining``), and int64 ``[4]`` on the
        device: votes, margin, ties, silent.
    """
    voters, size = rows.shape
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    if abstaining is not None and abstaining.stride(1) != 1:
        abstaining = abstaining.contiguous()
    programs = -(-size // _BYTES)
    negative = torch.empty(size, dtype=torch.uint8, device=rows.device)
    tied = torch.empty_like(negative) if ties else None
    silent = None if abstaining is None else torch.empty_like(negative)
    counts = torch.empty(programs, 4, dtype=torch.int32, device=rows.device)
    launch(
        tally_kernel, programs, rows.device,
        rows, abstaining, negative, tied, silent, counts, voters, size, rows.stride(0),
        0 if abstaining is None else abstaining.stride(0),
        ABSTAIN=abstaining is not None, TIES=ties, BYTES=_BYTES,
    )  # fmt: skip
    return negative, tied, silent, counts.sum(0)
