"""Plain torch versions of every bit kernel: slow, obvious, on any device.

They define the results. The NumPy kernels (and any other fast kernel) must equal them bit for
bit; tests compare the two. Devices without a fast kernel run these.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_signvr.signs.definition import abstains, is_negative


def bits_to_bytes(bits: Tensor) -> Tensor:
    """Pack a 1-D boolean tensor, element ``8 b + k`` into bit ``k`` of byte ``b``; padding is 0."""
    padded = torch.nn.functional.pad(bits.to(torch.uint8), (0, -bits.numel() % 8))
    weights = 2 ** torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (padded.view(-1, 8) * weights).sum(1, dtype=torch.uint8)


def bytes_to_bits(packed: Tensor, numel: int) -> Tensor:
    """The first ``numel`` bits of ``packed`` as a boolean tensor."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(-1) >> shifts) & 1).flatten()[:numel].bool()


def pack(values: Tensor, negative: Tensor, abstaining: Tensor | None) -> Tensor | bool:
    """Write the sign bits of 1-D ``values`` into ``negative`` and their abstentions into ``abstaining``.

    Returns whether any value abstains (always false where ``abstaining`` is None), as a tensor so as not to
    wait for the device.
    """
    negative.copy_(bits_to_bytes(is_negative(values)))
    if abstaining is None:
        return False
    missing = abstains(values)
    abstaining.copy_(bits_to_bytes(missing))
    return missing.any()


def unpack(negative: Tensor, zero: Tensor | None, numel: int, dtype: torch.dtype) -> Tensor:
    """Signs as -1, 0 and +1 in ``dtype``; 0 where the bit of ``zero`` is set."""
    signs = 1 - 2 * bytes_to_bits(negative, numel).to(dtype)
    return signs if zero is None else signs.masked_fill_(bytes_to_bits(zero, numel), 0)


def add_signs(target: Tensor, negative: Tensor, zero: Tensor | None, alpha: float, decay: float) -> None:
    """``target = decay * target + alpha * signs`` in place, for a 1-D ``target``.

    ``alpha`` is rounded to the dtype of ``target``, on all devices (``add`` would do so on CPU alone).
    Where the bit of ``zero`` is set nothing is added, not even 0, which would make 0.0 of -0.0.
    """
    if decay != 1.0:
        target.mul_(decay)
    moved = target + unpack(negative, None, target.numel(), target.dtype).mul_(alpha)
    if zero is not None:
        moved = torch.where(bytes_to_bits(zero, target.numel()), target, moved)
    target.copy_(moved)


def count(rows: Tensor, abstaining: Tensor | None) -> tuple[Tensor, Tensor]:
    """Positive and negative votes of each coordinate.

    Args:
        rows: uint8, ``[voters, bytes]``, each voter's sign bits.
        abstaining: same shape, each voter's abstentions, or None.
    """
    numel = rows.shape[1] * 8
    against = bytes_to_bits(rows.reshape(-1), rows.numel() * 8).view(rows.shape[0], numel)
    voting = torch.ones_like(against)
    if abstaining is not None:
        voting = ~bytes_to_bits(abstaining.reshape(-1), abstaining.numel() * 8).view(against.shape)
    return (~against & voting).sum(0), (against & voting).sum(0)
