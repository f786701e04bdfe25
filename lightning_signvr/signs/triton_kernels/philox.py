"""The random words of NumPy's Philox: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011)."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_signvr.signs.triton_kernels.launch import launch

_BLOCK = 256

_FIRST_FACTOR = tl.constexpr(0xD2E7470EE14C6C93)
_SECOND_FACTOR = tl.constexpr(0xCA5A826395121157)
_FIRST_KEY_STEP = tl.constexpr(0x9E3779B97F4A7C15)
_SECOND_KEY_STEP = tl.constexpr(0xBB67AE8584CAA73B)


@triton.jit(do_not_specialize=["first", "second", "third", "seed", "stream"])
def philox_kernel(
    words, blocks, first: tl.uint64, second: tl.uint64, third: tl.uint64, seed: tl.uint64, stream: tl.uint64,
    BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Philox4x64-10: four words for each counter ``(first + 1 + block, second, third, 0)``."""
    block = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    nothing = tl.zeros((BLOCK,), tl.uint64)
    a = nothing + first.to(tl.uint64) + block.to(tl.uint64) + 1  # NumPy counts before it draws
    b, c, d = nothing + second.to(tl.uint64), nothing + third.to(tl.uint64), nothing
    key, other_key = nothing + seed.to(tl.uint64), nothing + stream.to(tl.uint64)
    factor = tl.full((BLOCK,), _FIRST_FACTOR, tl.uint64)
    other_factor = tl.full((BLOCK,), _SECOND_FACTOR, tl.uint64)
    for _ in tl.static_range(10):
        high, low = tl.umulhi(a, factor), a * factor
        other_high, other_low = tl.umulhi(c, other_factor), c * other_factor
        a, b, c, d = other_high ^ b ^ key, other_low, high ^ d ^ other_key, low
        key += tl.full((BLOCK,), _FIRST_KEY_STEP, tl.uint64)
        other_key += tl.full((BLOCK,), _SECOND_KEY_STEP, tl.uint64)
    inside = block < blocks
    tl.store(words + 4 * block, a.to(tl.int64, bitcast=True), mask=inside)
    tl.store(words + 4 * block + 1, b.to(tl.int64, bitcast=True), mask=inside)
    tl.store(words + 4 * block + 2, c.to(tl.int64, bitcast=True), mask=inside)
    tl.store(words + 4 * block + 3, d.to(tl.int64, bitcast=True), mask=inside)


def random_words(
    seed: int, stream: int, counter: tuple[int, int, int], blocks: int, device: torch.device
) -> Tensor:
    """int64, ``[4 * blocks]``: what NumPy's ``Philox(key=(seed, stream), counter=(*counter, 0))`` draws."""
    words = torch.empty(4 * blocks, dtype=torch.int64, device=device)
    launch(
        philox_kernel, -(-blocks // _BLOCK), device,
        words, blocks, *counter, seed, stream, BLOCK=_BLOCK,
    )  # fmt: skip
    return words
