"""Votes that begin in backward move the parameters as votes after it do, to the last bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lightning_signvr.optimizers import SSVR, SSVRMV, EFSignum, Lion, NoisySignSGD, Signum
from lightning_signvr.voting import MajorityVote
from tests.workers import WorkerError, run_workers

METHODS = [
    (Signum, {}),
    (Lion, {"weight_decay": 0.1}),
    (NoisySignSGD, {"sigma": 0.01}),
    (Signum, {"maximize": True}),
]
BUCKETS = {"bucket_parameters": 300}


class Model(nn.Module):
    """With a layer that is skipped now and then, and a weight that is used twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.skipped = nn.Linear(9, 40), nn.Linear(40, 40), nn.Linear(40, 40)
        self.last = nn.Linear(40, 1)
        self.last.bias.requires_grad_(False)

    def forward(self, inputs, skip):
        hidden = self.second(self.second(self.first(inputs)).relu())
        return self.last(hidden if skip else self.skipped(hidden)).square().mean()


def batch(rank, step, part):
    return torch.randn(8, 9, generator=torch.Generator().manual_seed(1000 * step + 10 * part + rank))


def train(rank, make, overlap, accumulate=1, steps=6):
    model = Model()
    optimizer = make(model.parameters())
    if overlap:
        optimizer.overlap()
    for step in range(steps):
        optimizer.zero_grad()
        for part in range(accumulate):
            loss = model(batch(rank, step, part), skip=(rank + step) % 3 == 0 or step == 2)
            if overlap and part < accumulate - 1:
                with optimizer.overlapped.paused():
                    loss.backward()
            else:
                loss.backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()], optimizer.vote.last.counts


def play(rank, workers):
    different = []
    for kind, extra in METHODS:
        for accumulate in (1, 3):
            for buckets in ({}, BUCKETS):

                def make(parameters, kind=kind, extra=extra, buckets=buckets):
                    return kind(parameters, lr=0.01, vote=MajorityVote(**buckets), **extra)

                serial = train(rank, make, False, accumulate)
                overlapped = train(rank, make, True, accumulate)
                equal = all(torch.equal(*pair) for pair in zip(serial[0], overlapped[0], strict=True))
                if not equal or serial[1] != overlapped[1]:
                    different.append((kind.__name__, accumulate, buckets))
    return different, serial[0]


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_the_outcome_is_that_of_votes_after_backward(workers):
    results = run_workers(play, workers, workers, timeout=100)
    assert [different for different, _ in results] == [[]] * workers
    for _, parameters in results:
        assert all(torch.equal(*pair) for pair in zip(parameters, results[0][1], strict=True))


def starts_early(rank):
    model = Model()
    optimizer = Signum(model.parameters(), lr=0.01, vote=MajorityVote(**BUCKETS))
    optimizer.overlap()
    model(batch(rank, 0, 0), skip=False).backward()
    during = optimizer.vote.traffic.collectives
    optimizer.step()
    return during, optimizer.vote.traffic.collectives


def test_votes_travel_before_step_is_called():
    for during, in_all in run_workers(starts_early, 2):
        assert during >= 3
        assert in_all >= during


def misuse(rank, what):
    model = Model()
    optimizer = Signum(model.parameters(), lr=0.01, vote=MajorityVote(**BUCKETS))
    optimizer.overlap()
    loss = model(batch(rank, 0, 0), skip=False)
    loss.backward()
    if what == "two backward passes":
        model(batch(rank, 0, 1), skip=False).backward()
    elif what == "clipping":
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    elif what == "zero_grad":
        optimizer.zero_grad()
    elif what == "unfreezing":
        model.last.bias.requires_grad_(True)
    optimizer.step()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("two backward passes", "got a second gradient.*overlapped.paused"),
        ("clipping", "was changed or removed after backward"),
        ("zero_grad", "was changed or removed after backward"),
        ("unfreezing", "parameter groups changed after backward"),
    ],
)
def test_misuse_is_told(what, message):
    with pytest.raises(WorkerError, match=message):
        run_workers(misuse, 2, what)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(SSVR, "two points"), (SSVRMV, "all tensors together|two points"), (EFSignum, "all tensors together")],
)
def test_unsound_methods_are_refused(kind, reason):
    optimizer = kind([nn.Parameter(torch.zeros(3))], lr=0.01)
    with pytest.raises(ValueError, match=reason):
        optimizer.overlap()


def close(rank):
    """After close() votes are cast in step() again, and a copy of the optimizer never begins early."""
    model = Model()
    optimizer = Signum(model.parameters(), lr=0.01)
    optimizer.overlap()
    copied = copy.deepcopy(optimizer)
    optimizer.overlapped.close()
    optimizer.overlapped = None
    for part in range(2):
        model(batch(rank, 0, part), skip=False).backward()
    before = optimizer.vote.traffic.collectives
    optimizer.step()
    return copied.overlapped, before, optimizer.vote.exchange_group is optimizer.vote.process_group


def test_close():
    assert run_workers(close, 2) == [(None, 0, True)] * 2
