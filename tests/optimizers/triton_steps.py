"""Steps whose estimates, signs and updates are made by kernels end as those without, bit for bit.

``test_triton_steps.py`` runs this file in a process of its own, since Triton's interpreter is switched on
before Triton is first imported. On a machine with a GPU: ``pytest tests/optimizers/triton_steps.py``.
"""

from __future__ import annotations

import os
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from lightning_signvr.optimizers import SSVR, SSVRMV, EFSignum, Lion, ProxSignSGD, SignSGD, Signum
from lightning_signvr.proximal import L1
from lightning_signvr.signs import Recipe, dispatch
from lightning_signvr.voting import MajorityVote, MeanVote, waiting
from tests.signs.values import bits_of
from tests.workers import run_workers

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda:0")
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs TRITON_INTERPRET=1 or a GPU", allow_module_level=True)

SHAPES = [(5, 7), (3,), (0,), (40, 25), (9,), (33,)]
SHORT_SHAPES = [(17, 5), (130,)]  # of bfloat16
STEPS = 3
BUCKETS = {"bucket_parameters": 500}

CASES = {
    "Signum": (Signum, {"weight_decay": 0.1}, {}),
    "Signum, buckets": (Signum, {}, BUCKETS),
    "Signum, coins for zeros": (Signum, {}, {"zeros": "random", **BUCKETS}),
    "Signum, zeros positive": (Signum, {"momentum": 0.0}, {"zeros": "positive", **BUCKETS}),
    "SignSGD": (SignSGD, {"weight_decay": 0.1}, {"ties": "zero", **BUCKETS}),
    "Signum, nodes": (Signum, {}, {"voters": "node", "workers_per_node": 2, **BUCKETS}),
    "Lion": (Lion, {"weight_decay": 0.1}, BUCKETS),
    "SSVR": (SSVR, {"weight_decay": 0.1}, BUCKETS),
    "SSVR, half corrected": (SSVR, {"correction": 0.5}, {}),
    "SSVR, last batch": (SSVR, {"correction": 0.025, "previous": "last_batch"}, {}),
    "SSVR, rebuilt": (SSVR, {"previous_iterate": "rebuild"}, BUCKETS),
    # a stage is overridden, or the vote is of another kind
    "ProxSignSGD": (ProxSignSGD, {"regularizer": L1(0.1), "momentum": 0.5}, {}),
    "EFSignum": (EFSignum, {}, {}),
    "SSVRMV": (SSVRMV, {}, {}),
    "Lion, average": (Lion, {"average": True}, {}),
}
OF_TWO_WORKERS = [  # and whether votes begin in backward
    ("Signum, buckets", False),
    ("Signum, coins for zeros", False),
    ("SignSGD", False),
    ("Lion", False),
    ("SSVR", False),
    ("Lion, average", False),
    ("Signum, nodes", False),
    ("Signum, buckets", True),
    ("SignSGD", True),
]


def parameters():
    """Of two groups: of many sizes, one laid out in another order, one frozen; of 16 bits."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator).to(DEVICE)

    first = [*(random(*shape) for shape in SHAPES), random(8, 5).t(), random(4)]
    second = [random(*shape).bfloat16() for shape in SHORT_SHAPES]
    groups = [list(map(nn.Parameter, tensors)) for tensors in (first, second)]
    groups[0][-1].requires_grad_(False)
    return groups


def backward(rank, step, params, point):
    """Give most parameters gradients, with exact zeros in the same places as ever and in others."""
    loss = torch.zeros((), device=DEVICE)
    for index, parameter in enumerate(params):
        nowhere = index == 1 and step == 2
        if not parameter.requires_grad or nowhere or (rank + step + index) % 5 == 0:
            continue
        seed = 1000 * step + 100 * index + 10 * rank + point
        gradient = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
        gradient.view(-1)[step % 3 :: 7] = 0
        gradient.view(-1)[: parameter.numel() // 4] = 0
        loss = loss + (parameter * gradient.to(DEVICE, parameter.dtype)).sum()
    if loss.requires_grad:
        loss.backward()


def train(rank, case, overlap=False, look_in=None):
    """What a run ends with: parameters, state, the outcomes of the votes, and what an observer saw."""
    kind, arguments, rules = CASES[case]
    first, second = parameters()
    groups = [{"params": first}, {"params": second, "lr": 0.003, "weight_decay": 0.5, "maximize": True}]
    if kind is not EFSignum:
        vote_kind = MeanVote if arguments.get("average") else MajorityVote
        arguments = {"vote": vote_kind(seed=3, **rules), **arguments}
    optimizer = kind(groups, lr=0.01, **arguments)
    if overlap:
        optimizer.overlap()
    outcomes, seen = [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        if step == look_in:
            optimizer.observers = (lambda _, estimate: seen.append(bits(estimate)),)
        backward(rank, step, [*first, *second], 0)
        if isinstance(optimizer, SSVR | SSVRMV) and arguments.get("previous") != "last_batch":
            with optimizer.at_previous_iterate():
                backward(rank, step, [*first, *second], 1)
        optimizer.step()
        optimizer.observers = ()
        votes = optimizer.vote.last
        signs = [bits(votes.signs(index)) for index in range(len(votes.shapes))]
        outcomes.append((votes.counts, list(votes.present), signs))
    places = {parameter: place for place, parameter in enumerate([*first, *second])}
    state = {
        (places.get(parameter, parameter), name): bits(value) if torch.is_tensor(value) else value
        for parameter, its_state in optimizer.state.items()
        for name, value in its_state.items()
    }
    return {"parameters": list(map(bits, places)), "state": state, "outcomes": outcomes, "seen": seen}


def bits(tensor):
    tensor = tensor.detach().cpu()
    return tensor.tolist() if tensor.dtype == torch.uint8 else bits_of(tensor)


@contextmanager
def kernels_are(used):
    """Whether kernels work on the tensors in the block."""
    before = set(dispatch.TRITON_DEVICES)
    (dispatch.TRITON_DEVICES.add if used else dispatch.TRITON_DEVICES.discard)(DEVICE.type)
    try:
        yield dispatch.triton_kernels(DEVICE)
    finally:
        dispatch.TRITON_DEVICES.clear()
        dispatch.TRITON_DEVICES.update(before)


def compare(rank, case, **options):
    """What differs between a run without kernels and one with them, and of what each launch made signs."""
    launches = []
    with kernels_are(False):
        plain = train(rank, case, **options)
    with kernels_are(True) as kernels:
        pack_many = kernels.pack_many

        def noting(directions, *rest):
            launches.append(["recipe" if isinstance(each, Recipe) else "tensor" for each in directions])
            pack_many(directions, *rest)

        kernels.pack_many = noting
        try:
            fused = train(rank, case, **options)
        finally:
            kernels.pack_many = pack_many
    return [name for name in plain if plain[name] != fused[name]], launches


@pytest.mark.parametrize("case", CASES)
def test_one_worker(case):
    different, launches = compare(0, case)
    assert different == []
    assert launches


def test_one_launch_packs_all_that_are_alike():
    _, launches = compare(0, "Signum")
    assert {kind for launch in launches for kind in launch} == {"recipe"}
    assert len(launches) == 2 * STEPS  # float32 and bfloat16
    _, launches = compare(0, "Lion")
    assert len(launches) == STEPS  # directions are float32
    assert {kind for launch in launches for kind in launch} == {"tensor"}


def test_who_looks_sees_estimates():
    different, launches = compare(0, "Signum", look_in=2)
    assert different == []
    kinds = [set(launch) for launch in launches]
    assert kinds == [{"recipe"}] * 4 + [{"tensor"}]


def test_directions_that_take_memory_do_not_wait_for_many(monkeypatch):
    monkeypatch.setattr(waiting, "MOST_ELEMENTS", 40)
    different, launches = compare(0, "Lion")
    assert different == []
    assert len(launches) > 3 * STEPS
    assert len(compare(0, "Signum")[1]) == 2 * STEPS


def vote_on_a_tensor_in_two_buckets(rank):
    """Its one zero lies in the second bucket, and it is packed with the first."""
    split, other = torch.ones(1000), torch.ones(600)
    split[900] = 0
    outcomes = []
    for used in (False, True):
        with kernels_are(used):
            vote = MajorityVote(**BUCKETS)
            outcomes.append([vote([split, other]).signs(index) for index in range(2)])
    return outcomes


def play(rank):
    runs = [compare(rank, case, overlap=overlap) for case, overlap in OF_TWO_WORKERS]
    return runs, vote_on_a_tensor_in_two_buckets(rank)


@pytest.mark.skipif(not INTERPRETED, reason="several workers need as many GPUs")
def test_two_workers():
    for runs, (plain, fused) in run_workers(play, 2, timeout=240):
        assert [different for different, _ in runs] == [[]] * len(OF_TWO_WORKERS)
        packed_together = [bool(launches) for _, launches in runs]
        assert packed_together == [case != "Signum, nodes" for case, _ in OF_TWO_WORKERS]
        _, in_buckets = runs[0]
        assert len(in_buckets) > 2 * STEPS
        assert plain[0][900] == 0
        assert all(map(torch.equal, plain, fused))
