"""What changed in a packed plane since it was last sent.

Which coordinates abstain changes little from step to step (a dead unit stays dead), so a plane of
abstentions is sent as its difference to the previous one. The code of a plane of w 64-bit words:

* no change: nothing, or a count of 0 where there must be something;
* c changed words: int64 c, then c int64 words to XOR with, then c int32 positions (padded to 8 bytes);
* where that would be longer than the plane: int64 -1, then the new plane itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

_DENSE = -1


def longest_code(size: int) -> int:
    """Bytes of the longest code of a plane of ``size`` bytes."""
    return 8 + size


def encode(previous: Tensor, current: Tensor) -> Tensor:
    """Code of ``current`` for a receiver that has ``previous``.

    Args:
        previous, current: contiguous uint8, ``[size]`` with ``size`` a multiple of 8, starting on a
            multiple of 8 bytes in memory.

    Returns:
        uint8 tensor, empty where nothing changed, else of a multiple of 8 bytes and at most
        :func:`longest_code`.
    """
    changes = previous.view(torch.int64) ^ current.view(torch.int64)
    positions = changes.nonzero().flatten()
    count = positions.numel()
    if count == 0:
        return current[:0]
    if 12 * count + 4 > current.numel():
        return torch.cat([_int64(_DENSE, current), current])
    padded = torch.nn.functional.pad(positions.int(), (0, count % 2))
    parts = [_int64(count, current), changes[positions].view(torch.uint8), padded.view(torch.uint8)]
    return torch.cat(parts)


def decode_(plane: Tensor, code: Tensor) -> Tensor:
    """Bring ``plane``, the receiver's previous one, up to date in place.

    Args:
        plane: as ``previous`` of :func:`encode`.
        code: uint8, what :func:`encode` gave, with any number of bytes behind it.

    Returns:
        ``plane``.

    Raises:
        ValueError: ``code`` is damaged: a length or a position that does not fit, or positions that do not
            ascend; ``plane`` is as before.
    """
    if code.numel() == 0:
        return plane
    if code.numel() < 8:
        raise ValueError(f"a code of {code.numel()} bytes is cut off")
    count = int(code[:8].clone().view(torch.int64))
    if count == _DENSE:
        if code.numel() < 8 + plane.numel():
            raise ValueError(f"a plane of {plane.numel()} bytes does not fit a code of {code.numel()}")
        return plane.copy_(code[8 : 8 + plane.numel()])
    words = plane.view(torch.int64)
    if not 0 <= count <= min(words.numel(), (code.numel() - 8) // 12):
        raise ValueError(f"{count} changed words do not fit a code of {code.numel()} bytes")
    changes = code[8 : 8 + 8 * count].clone().view(torch.int64)
    positions = code[8 + 8 * count : 8 + 12 * count].clone().view(torch.int32).long()
    inside = (positions >= 0) & (positions < words.numel())
    inside[1:] &= positions[1:] > positions[:-1]  # what is said twice would be in the order of threads
    if not bool(inside.all()):
        raise ValueError(
            f"a changed word lies outside of a plane of {words.numel()} words, or they do not ascend"
        )
    words[positions] ^= changes
    return plane


def _int64(value: int, like: Tensor) -> Tensor:
    return torch.tensor([value], dtype=torch.int64, device=like.device).view(torch.uint8)
