"""What goes over the network, counted by the kernel: signs, and no gradients."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress

import pytest
import torch
from torch import nn

from lightning_signvr import Signum
from lightning_signvr.accelerate import sign_vote
from tests.accelerate.helpers import WORKERS, new_accelerator
from tests.workers import run_workers

STEPS, WIDTH = 10, 500
BYTES_SENT = slice(200, 208)  # tcpi_bytes_sent in the kernel's struct tcp_info, retransmissions included


def sent_by_this_process() -> int:
    """Bytes that all TCP connections of this process have sent."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # not a socket, not a TCP one, or closed by now
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                with socket.socket(fileno=os.dup(int(name))) as connection:
                    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                total += struct.unpack("=Q", info[BYTES_SENT])[0]
    return total


def train(rank: int, votes: bool) -> tuple[float, dict[str, float]]:
    """Bytes sent in each step, and the metrics."""
    accelerator = new_accelerator(gradient_accumulation_steps=1)
    sv = sign_vote(accelerator) if votes else None
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))
    model, optimizer = accelerator.prepare(model, Signum(model.parameters(), lr=0.01))
    before = 0
    for step in range(STEPS + 3):
        if step == 3:  # after DDP has built its buckets anew
            before = sent_by_this_process()
            if sv is not None:
                sv.metrics()
        accelerator.backward(model(torch.randn(4, WIDTH)).square().mean())
        if votes:
            optimizer.step()
        optimizer.zero_grad()
    return (sent_by_this_process() - before) / STEPS, {} if sv is None else sv.metrics()


def train_both(rank: int) -> tuple[float, float, dict[str, float]]:
    return (train(rank, votes=False)[0], *train(rank, votes=True))


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="counts with Linux' TCP_INFO")
def test_signs_are_sent_and_gradients_are_not() -> None:
    parameters = WIDTH * WIDTH + 3 * WIDTH
    for ddp, vote, metrics in run_workers(train_both, WORKERS):
        assert ddp > 4 * parameters  # what 32 bits look like to this counter
        assert parameters / 8 <= metrics["comm/bytes_sent"] < 1.05 * parameters / 8
        assert metrics["comm/bytes_sent"] <= vote < 1.1 * metrics["comm/bytes_sent"]
        assert metrics["comm/bits_per_parameter"] == pytest.approx(
            8 * metrics["comm/bytes_sent"] / parameters
        )
        assert metrics["comm/savings_vs_fp32"] == pytest.approx(32, rel=0.05)
        assert metrics["comm/savings_vs_bf16"] == pytest.approx(16, rel=0.05)
        assert metrics["comm/seconds"] > 0
        assert 0 <= metrics["sign_vote/tie_rate"] <= 1
        assert metrics["sign_vote/agreement"] == pytest.approx(1 - metrics["sign_vote/tie_rate"], abs=0.01)
        assert metrics["sign_vote/abstain_rate"] < 0.01


def sent_in_one_step(rank: int, steps_before: int) -> float:
    model = nn.Linear(WIDTH, 1)
    optimizer = Signum(model.parameters(), lr=0.01)
    for _ in range(steps_before):
        optimizer.step(lambda: model(torch.ones(WIDTH)).sum().backward())
    accelerator = new_accelerator(gradient_accumulation_steps=1)
    sv = sign_vote(accelerator)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.backward(model(torch.ones(WIDTH)).sum())
    optimizer.step()
    return sv.metrics()["comm/bytes_sent"]


def sent_after_steps_or_not(rank: int) -> list[float]:
    return [sent_in_one_step(rank, steps_before) for steps_before in (0, 4)]


def test_steps_before_the_preparation_do_not_count() -> None:
    for fresh, stepped in run_workers(sent_after_steps_or_not, WORKERS):
        assert fresh == stepped > WIDTH / 8
