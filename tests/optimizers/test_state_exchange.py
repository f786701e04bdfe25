"""What a worker sends in the place of its optimizer's state, and what the others make of it."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_signvr.optimizers.rank_states import with_rank_states
from lightning_signvr.optimizers.state_exchange import OUTLINE, Peer, memory
from lightning_signvr.optimizers.state_trees import bytes_of
from tests.workers import run_workers

CPU = torch.device("cpu")
PARAMETERS = 3


def announce(peer: Peer, size: int) -> None:
    peer._send_bytes(bytes_of(torch.tensor([size])))


def outline(peer: Peer, tree: Any) -> None:
    """As ``Peer.send`` does, without the tensors that should follow."""
    buffer = io.BytesIO()
    torch.save(tree, buffer)
    data = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
    announce(peer, data.numel())
    peer._send_bytes(data)


def garbage(peer: Peer) -> None:
    announce(peer, 1000)
    peer._send_bytes(torch.arange(1000).to(torch.uint8))


def state(*shape: int) -> list[Any]:
    return [{0: {"momentum_buffer": torch.empty(shape, device="meta")}}, 0]


FORGERIES: dict[str, tuple[Callable[[Peer], None], str]] = {
    "endless": (lambda peer: announce(peer, 2**60), f"outline would have {2**60} bytes"),
    "too long": (
        lambda peer: announce(peer, OUTLINE * (1 + PARAMETERS) + 1),
        "bytes, where 262144 are plenty",
    ),
    "negative": (lambda peer: announce(peer, -8), "outline would have -8 bytes"),
    "nothing": (lambda peer: announce(peer, 0), "outline would have 0 bytes"),
    "garbage": (garbage, "outline cannot be read"),
    "code": (lambda peer: outline(peer, [{0: print}, 0]), "outline cannot be read"),
    "a huge tensor": (lambda peer: outline(peer, state(2**50)), f"it would have {2**52} bytes"),
    "a huge sum": (
        lambda peer: outline(peer, [{n: state(memory() // 12)[0][0] for n in range(4)}, 0]),
        f"it would have {memory() // 12 * 16} bytes",
    ),
    "expanded": (lambda peer: outline(peer, state(1)[0][0]["momentum_buffer"].expand(2**50)), "would have"),
    "no pair": (lambda peer: peer.send([1, 2, 3]), "not a dict and a checksum"),
    "no list": (lambda peer: peer.send({0: {}}), "not a dict and a checksum"),
}


def receive(rank: int) -> dict[str, str]:
    """Rank 0's error for each forgery."""
    errors = {}
    for name, (forge, _) in FORGERIES.items():
        if rank > 0:
            forge(Peer(0, CPU))
            continue
        with pytest.raises(RuntimeError) as error:
            with_rank_states({"state": {}, "param_groups": [{"params": list(range(PARAMETERS))}]}, CPU)
        errors[name] = str(error.value)
    return errors


@pytest.fixture(scope="module")
def errors() -> dict[str, str]:
    first: dict[str, str] = run_workers(receive, 2)[0]
    return first


@pytest.mark.parametrize("name", FORGERIES)
def test_what_is_no_state_is_refused_with_its_rank(name: str, errors: dict[str, str]) -> None:
    assert errors[name].startswith("rank 1 sends an optimizer state that is refused")
    assert FORGERIES[name][1] in errors[name]


def send_many(rank: int) -> int:
    """A parameter may have dozens of tensors, and rank 0 none."""
    tensors = {f"a tensor with quite a long name {n}": torch.full((2, 3), n) for n in range(100)}
    mine = dict.fromkeys(range(PARAMETERS), tensors) if rank else {}
    all_states = with_rank_states({"state": mine, "param_groups": [{"params": list(range(PARAMETERS))}]}, CPU)
    return len(all_states["rank_states"]["states"][1]) if rank == 0 else PARAMETERS


def test_a_large_state_is_none_of_these() -> None:
    assert run_workers(send_many, 2) == [PARAMETERS] * 2
