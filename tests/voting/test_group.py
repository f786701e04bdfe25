from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from lightning_signvr.voting.group import check_backend_for, world
from tests.strategies.helpers import environment

ENDING = """
import os
import lightning_signvr
import torch
import torch.distributed as dist

def gloo_threads():
    names = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
    return sum("gloo" in name for name in names)

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
parameter = torch.nn.Parameter(torch.ones(2))
parameter.grad = torch.ones(2)
lightning_signvr.Signum([parameter], lr=0.1).step()
print(gloo_threads() > 0)
dist.destroy_process_group()
print(gloo_threads())
"""


def test_one_process_without_a_group_is_alone():
    assert world(None) == (0, 1)


@pytest.mark.parametrize(
    ("device", "backends", "wanted"),
    [
        ("cuda", {"cuda": "gloo", "cpu": "gloo"}, "initialise it with nccl for cuda"),
        ("cuda", {"cpu": "gloo"}, "initialise it with nccl for cuda"),
        ("cpu", {"cuda": "nccl"}, "initialise it with gloo for cpu"),
        ("meta", {"cpu": "gloo", "cuda": "nccl"}, "initialise it with a backend for meta"),
    ],
)
def test_missing_backends_are_named_with_the_remedy(device, backends, wanted):
    with pytest.raises(ValueError, match=f"^process_group cannot exchange tensors on '{device}'.*{wanted}"):
        check_backend_for(torch.device(device), backends)


def test_backends_that_fit_are_accepted():
    for device in ("cpu", "cuda"):
        check_backend_for(torch.device(device), {"cpu": "gloo", "cuda": "nccl"})


@pytest.mark.skipif(sys.platform != "linux", reason="the names of threads are in /proc")
def test_nothing_of_a_destroyed_group_is_left():
    done = subprocess.run(
        [sys.executable, "-c", ENDING],
        env={**environment(), "LIGHTNING_SIGNVR_REGISTER": "0"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout.split() == ["True", "0"], done.stderr
