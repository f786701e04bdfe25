from __future__ import annotations

import pytest
import torch

from lightning_signvr.voting.group import check_backend_for, world


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
