"""Time the sign codec on one CPU thread, beside the plain torch operations that bound it.

``python benchmarks/codec.py --output benchmarks/results/codec.md``

The operations take turns (round-robin), so that a busy machine slows all of them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from timing import Operation, heading, ratios, run_cli, times

from lightning_signvr.signs import add_signs_, majority, pack_signs, pack_signs_and_abstentions

VOTERS = (2, 4, 8, 16)
# operation, what it is compared with, largest ratio aimed at
AIMS = (
    ("pack", "read", 1.8),
    ("pack, looking for zeros", "read", 2.6),
    ("apply", "plain add", 1.3),
    ("tally, own shard, 8 voters", "pack", 1 / 3),
    ("tally, own shard, 16 voters", "pack", 1 / 3),
)


def operations(elements: int) -> Sequence[Operation]:
    """All operations on ``elements`` float32, their results discarded."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(elements, generator=generator)
    with_zero = values.clone()
    values[values == 0] = 1.0  # no exact zero anywhere: the usual gradient
    with_zero[:: max(1, elements // 10)] = 0.0
    parameters, update = torch.zeros(elements), torch.full((elements,), 1e-3)
    packed = pack_signs(values)
    signs, abstentions = torch.empty_like(packed), torch.empty_like(packed)
    zeros = pack_signs_and_abstentions(with_zero)[1]
    rows = torch.randint(0, 256, (max(VOTERS), len(packed)), dtype=torch.uint8, generator=generator)
    shards = {voters: rows[:voters, : -(-len(packed) // voters)].contiguous() for voters in VOTERS}

    def tally(votes: torch.Tensor) -> Callable[[], object]:
        return lambda: majority(votes)

    return [
        Operation("read", lambda: values.sum()),
        Operation("pack", lambda: pack_signs(values, signs)),
        Operation("pack, looking for zeros", lambda: pack_signs_and_abstentions(values, signs, abstentions)),
        *(Operation(f"tally, {n} voters", tally(rows[:n])) for n in VOTERS),
        *(Operation(f"tally, own shard, {n} voters", tally(shards[n])) for n in VOTERS),
        Operation("plain add", lambda: parameters.add_(update)),
        Operation("apply", lambda: add_signs_(parameters, packed, -1e-3)),
        Operation("apply, weight decay", lambda: add_signs_(parameters, packed, -1e-3, decay=0.9999)),
        Operation("apply, some zeros", lambda: add_signs_(parameters, packed, -1e-3, zeros=zeros)),
    ]


def report(elements: int, repeats: int, timed: Sequence[Operation]) -> str:
    """The measurements as markdown."""
    lines = heading(f"Sign codec, {elements / 1e6:g} M float32, one thread", repeats)
    lines += [*times(timed), "", *ratios(timed, AIMS)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_cli(__doc__.splitlines()[0], ("elements", 25_600_000), operations, report)
