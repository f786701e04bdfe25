"""Sign optimizers over real workers against their formula computed in one process."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_signvr import MajorityVote, SignSGD, Signum
from lightning_signvr.optimizers import SignOptimizer
from lightning_signvr.optimizers.rank_states import own_rank_state, resized, with_rank_states
from tests.workers import WorkerError, run_workers

STEPS = 50
SHAPES = [(7, 5), (13,), (1,), (4, 3, 3)]


def gradients(rank: int, step: int) -> list[Tensor]:
    """Multiples of 1/8 with exact zeros and a NaN; differ between workers, and so do the ties."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    result = [torch.randint(-8, 9, shape, generator=generator) / 8 for shape in SHAPES]
    if step == 20 + rank:
        result[1][3] = float("nan")
    return result


def train(rank: int, name: str, same_data: bool) -> list[Tensor]:
    weights = [nn.Parameter(torch.full(shape, 0.5)) for shape in SHAPES]
    vote = MajorityVote(ties="positive")
    optimizer: SignOptimizer = (
        SignSGD(weights, 0.25, 0.5, vote=vote)
        if name == "SignSGD"
        else Signum(weights, 0.25, 0.5, 0.5, vote=vote)
    )
    for step in range(STEPS):
        for weight, gradient in zip(weights, gradients(0 if same_data else rank, step), strict=True):
            weight.grad = gradient
        optimizer.step()
    return [weight.detach() for weight in weights]


def formula(name: str, workers: int) -> list[Tensor]:
    """``m <- m / 2 + g / 2`` for each worker; ``x <- x - lr (sign(sum of signs) + wd x)``.

    A worker with a NaN leaves out both.
    """
    weights = [torch.full(shape, 0.5) for shape in SHAPES]
    averages = [[torch.zeros(shape) for shape in SHAPES] for _ in range(workers)]
    for step in range(STEPS):
        for index, weight in enumerate(weights):
            total, voters = torch.zeros_like(weight), torch.zeros_like(weight)
            for rank in range(workers):
                gradient = gradients(rank, step)[index]
                if gradient.isnan().any():
                    continue
                if name == "Signum":
                    gradient = averages[rank][index] = averages[rank][index] * 0.5 + gradient * 0.5
                sign = gradient.sign()
                total += sign
                voters += sign.abs()
            vote = torch.where((total == 0) & (voters > 0), 1.0, total.sign())
            weights[index] = weight * (1 - 0.25 * 0.5) - 0.25 * vote
    return weights


@pytest.mark.parametrize("workers", [2, 3, 4])
@pytest.mark.parametrize("name", ["SignSGD", "Signum"])
def test_workers_follow_the_formula_bit_for_bit(name: str, workers: int) -> None:
    expected = formula(name, workers)
    for replica in run_workers(train, workers, name, False):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(replica, expected, strict=True))


def test_identical_workers_are_one_worker() -> None:
    alone = train(0, "Signum", True)
    for replica in run_workers(train, 4, "Signum", True):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(replica, alone, strict=True))


def missing_gradients(rank: int) -> tuple[list[list[float]], list[int]]:
    """Which worker has which gradient: all, some, another some, nobody; changing with the step."""
    weights = [nn.Parameter(torch.zeros(9)) for _ in range(4)]
    optimizer = Signum(weights, lr=1.0, momentum=0.5, weight_decay=0.0)
    sent = []
    for step in range(6):
        for index, weight in enumerate(weights):
            has_one = index == 0 or (index < 3 and (rank + step) % 3 == index)
            weight.grad = torch.full((9,), float((-1) ** index)) if has_one else None
        before = optimizer.vote.traffic.bytes_sent
        optimizer.step()
        sent.append(optimizer.vote.traffic.bytes_sent - before)
    return [weight.tolist() for weight in weights], sent


def test_missing_gradients_abstain() -> None:
    results = run_workers(missing_gradients, 3)
    assert results[0] == results[1] == results[2]
    weights, _ = results[0]
    assert weights[0] == [-6.0] * 9  # everybody votes +
    assert weights[1] == [6.0] * 9  # in each step one worker alone votes -
    assert weights[2] == [-6.0] * 9
    assert weights[3] == [0.0] * 9  # nobody votes


def raise_on_rank_one(rank: int) -> None:
    weight = nn.Parameter(torch.zeros(8))
    optimizer = SignSGD([weight])
    for step in range(3):
        if rank == 1 and step == 1:
            weight.grad = torch.zeros(8).to_sparse()
        else:
            weight.grad = torch.ones(8)
        optimizer.step()


def test_a_rank_that_raises_ends_the_others() -> None:
    with pytest.raises(WorkerError) as error:
        run_workers(raise_on_rank_one, 3, timeout=20)
    assert "is sparse" in str(error.value)
    assert "did not end" not in str(error.value)


def different_models(rank: int) -> None:
    Signum([nn.Parameter(torch.zeros(8 + rank)), nn.Parameter(torch.zeros(3))]).step()


def test_different_models_are_named_by_rank() -> None:
    with pytest.raises(WorkerError, match=r"rank 1: 2 tensors, 12 parameters, step 0"):
        run_workers(different_models, 2, timeout=20)


def save_and_resume(rank: int) -> tuple[list[Tensor], dict[str, object], str]:
    """Six steps, the last three once more from a gathered state."""

    def step_from(optimizer: Signum, weight: nn.Parameter, first: int) -> None:
        for step in range(first, first + 3):
            weight.grad = gradients(rank, step)[0] if (rank, step) != (1, 0) else None
            optimizer.step()

    weight = nn.Parameter(torch.zeros(SHAPES[0]))
    optimizer = Signum([weight], lr=0.25)
    step_from(optimizer, weight, 0)
    gathered = copy.deepcopy(with_rank_states(optimizer.state_dict(), torch.device("cpu")))
    saved_weight = weight.detach().clone()
    step_from(optimizer, weight, 3)

    everyone: list[object] = [gathered if rank == 0 else None]
    dist.broadcast_object_list(everyone)
    twin_weight = nn.Parameter(saved_weight)
    twin = Signum([twin_weight], lr=1.0)
    twin.load_state_dict(own_rank_state(everyone[0], rank, 2))  # type: ignore[arg-type]
    step_from(twin, twin_weight, 3)
    assert torch.equal(twin.state[twin_weight]["momentum_buffer"], optimizer.state[weight]["momentum_buffer"])
    try:
        own_rank_state(everyone[0], rank, 3)  # type: ignore[arg-type]
    except RuntimeError as error:
        return [weight.detach(), twin_weight.detach()], everyone[0], str(error)  # type: ignore[return-value]
    raise AssertionError("a state of 2 workers was given to 3")


def test_every_rank_resumes_with_its_own_state() -> None:
    [first, second] = run_workers(save_and_resume, 2)
    for weight, twin_weight in (first[0], second[0]):
        assert torch.equal(weight, twin_weight)
    state, message = first[1], first[2]
    assert "of 2 worker(s), and this run has 3" in message
    buffers = [saved[0]["momentum_buffer"] for saved in state["rank_states"]["states"]]
    assert not torch.equal(*buffers)
    plain = Signum([nn.Parameter(torch.zeros(SHAPES[0]))])
    with pytest.raises(RuntimeError, match=r"of 2 worker\(s\), and this run has 1.*resized\(state_dict, 1"):
        plain.load_state_dict(state)
    plain.load_state_dict(resized(state, 1, "mean"))
    assert torch.equal(plain.state_dict()["state"][0]["momentum_buffer"], (buffers[0] + buffers[1]) / 2)
    del state["rank_states"]  # any program can load rank 0's part
    plain.load_state_dict(state)
    assert torch.equal(plain.state_dict()["state"][0]["momentum_buffer"], buffers[0])


def test_a_newer_format_is_refused() -> None:
    state = {"state": {}, "param_groups": [], "rank_states": {"format": 99, "world_size": 1, "states": [{}]}}
    with pytest.raises(RuntimeError, match="format 99"):
        own_rank_state(state, 0, 1)
