"""Send an optimizer's state to another worker, tensor by tensor: no packed copy of it on either side."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_signvr.optimizers.state_trees import bytes_of, mapped
from lightning_signvr.voting.failures import explained

CHUNK = 64 * 1024 * 1024  # bytes per message: what is held beside the tensor itself
OUTLINE = 64 * 1024  # bytes per parameter that names, dtypes and shapes may take: a tensor takes about 90

_PURPOSE = "gathering the workers' optimizer states"


@dataclass(frozen=True)
class Peer:
    """A worker to send to or receive from.

    Attributes:
        rank: its rank in the group.
        device: where the group's backend can exchange tensors.
        group: the workers; None for all.
    """

    rank: int
    device: torch.device
    group: dist.ProcessGroup | None = None

    @property
    def _global_rank(self) -> int:
        return self.rank if self.group is None else dist.get_global_rank(self.group, self.rank)

    def send(self, tree: Any) -> None:
        """Send a tree of tensors and plain values, for the other's :meth:`receive`."""
        buffer = io.BytesIO()
        torch.save(mapped(tree, lambda tensor: torch.empty_like(tensor, device="meta")), buffer)
        outline = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
        self._send_bytes(bytes_of(torch.tensor([outline.numel()])))
        self._send_bytes(outline)
        mapped(tree, lambda tensor: self._send_bytes(bytes_of(tensor)))

    def receive(self, parameters: int) -> Any:
        """What the other one sends, in the CPU's memory; its sizes are checked before any is taken.

        Args:
            parameters: how many there are, of whose state it is.

        Raises:
            RuntimeError: it cannot be read, or is too large to be of so many parameters or for this machine.
        """
        size = torch.empty(1, dtype=torch.int64)
        self._receive_bytes(bytes_of(size))
        most = OUTLINE * (1 + parameters)
        if not 0 < int(size) <= most:
            raise self.refusal(f"its outline would have {int(size)} bytes, where {most} are plenty")
        outline = torch.empty(int(size), dtype=torch.uint8)
        self._receive_bytes(outline)
        sizes: list[int] = []
        try:
            tree = torch.load(io.BytesIO(outline.numpy().tobytes()), weights_only=True)
            mapped(tree, lambda tensor: sizes.append(tensor.numel() * tensor.element_size()))
        except Exception as error:
            raise self.refusal(f"its outline cannot be read: {error}") from error
        if sum(sizes) > memory():
            raise self.refusal(f"it would have {sum(sizes)} bytes, and this machine has {memory()}")
        return mapped(tree, self._receive_tensor)

    def refusal(self, reason: str) -> RuntimeError:
        """An error that names the worker."""
        return RuntimeError(
            f"rank {self.rank} sends an optimizer state that is refused: {reason}. Run the same program with "
            "the same version of lightning-signvr on all ranks, and look at that rank's machine"
        )

    def _receive_tensor(self, outline: Tensor) -> Tensor:
        elements = torch.empty(outline.shape, dtype=outline.dtype, device="cpu")
        self._receive_bytes(bytes_of(elements))
        laid_out = torch.empty_like(outline, device="cpu")  # strides as they were
        return elements if laid_out.stride() == elements.stride() else laid_out.copy_(elements)

    def _send_bytes(self, data: Tensor) -> None:
        with explained(_PURPOSE, self.group):
            for chunk in _chunks(data):
                dist.send(chunk.to(self.device), dst=self._global_rank, group=self.group)

    def _receive_bytes(self, data: Tensor) -> None:
        for chunk in _chunks(data):
            arrived = chunk if self.device.type == "cpu" else torch.empty_like(chunk, device=self.device)
            with explained(_PURPOSE, self.group):
                dist.recv(arrived, src=self._global_rank, group=self.group)
            if arrived is not chunk:
                chunk.copy_(arrived)


def _chunks(data: Tensor) -> Iterator[Tensor]:
    for start in range(0, data.numel(), CHUNK):
        yield data[start : start + CHUNK]


def memory() -> int:
    """Bytes of memory of this machine; 2**40 where it does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**40
