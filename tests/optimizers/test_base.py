"""What every sign optimizer does as a torch optimizer."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_signvr import LocalVote, MajorityVote, SignSGD, Signum
from lightning_signvr.optimizers import SSVR, SignOptimizer

one_gradient_ssvr = partial(SSVR, previous="last_batch")
each = pytest.mark.parametrize(
    "make", [SignSGD, Signum, one_gradient_ssvr], ids=["SignSGD", "Signum", "SSVR"]
)
Make = Callable[..., SignOptimizer]


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def loss_of(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(32, 6, generator=generator)
    return nn.functional.cross_entropy(model(inputs), torch.randint(3, (32,), generator=generator))


def train(model: nn.Module, optimizer: SignOptimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()


@each
def test_learns(make: Make) -> None:
    model = small_model()
    first = loss_of(model).item()
    train(model, make(model.parameters(), lr=0.02), 100)
    assert loss_of(model).item() < 0.3 * first


@each
def test_closure_gives_the_loss_and_the_same_step(make: Make) -> None:
    weights = []
    for use_closure in (False, True):
        model = small_model()
        optimizer = make(model.parameters(), lr=0.01)

        def closure(model: nn.Module = model, optimizer: SignOptimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model)
            loss.backward()
            return loss

        for _ in range(3):
            if use_closure:
                assert optimizer.step(closure).requires_grad
            else:
                closure()
                assert optimizer.step() is None
        weights.append(nn.utils.parameters_to_vector(model.parameters()))
    assert torch.equal(*weights)


def test_groups_have_their_own_hyper_parameters() -> None:
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = Signum(
        [{"params": [first]}, {"params": [second], "lr": 0.5, "maximize": True, "weight_decay": 0.5}], lr=0.25
    )
    for weight in (first, second):
        weight.grad = torch.tensor([1.0, -1.0])
    optimizer.step()
    assert first.tolist() == [0.75, 1.25]
    assert second.tolist() == [0.75 + 0.5, 0.75 - 0.5]


def test_added_group_joins_the_vote() -> None:
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = SignSGD([first], lr=1.0)
    first.grad = torch.ones(1)
    optimizer.step()
    optimizer.add_param_group({"params": [second]})
    second.grad = -torch.ones(1)
    optimizer.step()
    assert (first.item(), second.item()) == (-2.0, 1.0)
    assert [group["step"] for group in optimizer.param_groups] == [2, 2]


@each
def test_lr_may_be_a_tensor_and_follow_a_scheduler(make: Make) -> None:
    moved = []
    for lr in (0.5, torch.tensor(0.5)):
        weight = nn.Parameter(torch.zeros(1))
        optimizer = make([weight], lr=lr)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        for _ in range(3):
            weight.grad = torch.ones(1)
            optimizer.step()
            scheduler.step()
        moved.append(weight.item())
    assert moved == [-0.875, -0.875]


@each
@pytest.mark.parametrize("way", ["state_dict", "file", "deepcopy", "pickle"])
def test_state_survives(make: Make, way: str, tmp_path: Path) -> None:
    model = small_model()
    optimizer = make(model.parameters(), lr=0.01)
    train(model, optimizer, 5)
    if way == "deepcopy":
        twin, twin_optimizer = copy.deepcopy((model, optimizer))
    elif way == "pickle":
        twin, twin_optimizer = pickle.loads(pickle.dumps((model, optimizer)))
    else:
        state = optimizer.state_dict()
        if way == "file":
            torch.save(state, tmp_path / "state.pt")
            state = torch.load(tmp_path / "state.pt", weights_only=True)
        twin = copy.deepcopy(model)
        twin_optimizer = make(twin.parameters(), lr=1.0)
        twin_optimizer.load_state_dict(state)
    assert twin_optimizer.param_groups[0]["step"] == 5
    train(model, optimizer, 5)
    train(twin, twin_optimizer, 5)
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_loaded_state_keeps_its_dtype() -> None:
    weight = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optimizer = Signum([weight], momentum=0.999)
    weight.grad = torch.ones(1, dtype=torch.bfloat16)
    optimizer.step()
    saved = optimizer.state_dict()
    other = Signum([nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))])
    other.load_state_dict(saved)
    [state] = other.state.values()
    assert state["momentum_buffer"].dtype == torch.float32
    assert torch.equal(state["momentum_buffer"], optimizer.state[weight]["momentum_buffer"])
    assert state["momentum_buffer"].data_ptr() != optimizer.state[weight]["momentum_buffer"].data_ptr()


def test_gradient_is_not_kept_or_changed() -> None:
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.tensor([1.0, -2.0, 3.0])
    optimizer = Signum([weight], lr=0.1)
    optimizer.step()
    assert weight.grad.tolist() == [1.0, -2.0, 3.0]
    before = optimizer.state[weight]["momentum_buffer"].clone()
    weight.grad.zero_()  # torch may reuse the gradient's memory
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], before)


@each
def test_parameters_without_gradient_or_frozen_stay(make: Make) -> None:
    weights = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    weights[1].requires_grad_(False)
    weights[2].grad = torch.ones(2)
    optimizer = make(weights, lr=0.5, weight_decay=0.5)
    optimizer.step()
    assert [weight.tolist() for weight in weights] == [[1, 1], [1, 1], [0.25, 0.25]]


@each
def test_a_parameter_in_any_memory_format(make: Make) -> None:
    weight = nn.Parameter(torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last))
    gradient = torch.randn(2, 3, 4, 5)
    weight.grad = gradient.to(memory_format=torch.channels_last)
    make([weight], lr=1.0).step()
    assert torch.equal(weight.detach(), -gradient.sign())


@each
@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("lr", -1.0, ValueError),
        ("lr", float("nan"), ValueError),
        ("lr", float("inf"), ValueError),
        ("lr", torch.tensor([0.1, 0.2]), ValueError),
        ("lr", torch.tensor(-1.0), ValueError),
        ("lr", "fast", TypeError),
        ("lr", None, TypeError),
        ("weight_decay", -0.1, ValueError),
        ("weight_decay", float("nan"), ValueError),
        ("vote", "majority", TypeError),
    ],
)
def test_bad_arguments_are_named(make: Make, name: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=name):
        make([nn.Parameter(torch.zeros(1))], **{name: value})


@pytest.mark.parametrize("momentum", [-0.1, 1.0, 2.0, float("nan")])
def test_bad_momentum_is_named(momentum: float) -> None:
    with pytest.raises(ValueError, match="momentum"):
        Signum([nn.Parameter(torch.zeros(1))], momentum=momentum)


def test_bad_group_is_refused_wherever_it_comes_from() -> None:
    weight = nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match="momentum"):
        Signum([{"params": [weight], "momentum": 1.5}])
    optimizer = Signum([weight])
    with pytest.raises(ValueError, match="lr"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": -1.0})


@each
@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_unsupported_parameters_are_refused(make: Make, dtype: torch.dtype) -> None:
    odd = nn.Parameter(torch.zeros(2, dtype=dtype), requires_grad=False)
    with pytest.raises(TypeError, match="parameter 1 of group 0 has dtype"):
        make([nn.Parameter(torch.zeros(2)), odd])


@each
def test_sparse_gradients_are_refused(make: Make) -> None:
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = make(embedding.parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match=r"gradient of parameter 0 of group 0 is sparse.*to_dense"):
        optimizer.step()


def test_given_vote_is_used() -> None:
    vote = LocalVote(zeros="positive")
    weight = nn.Parameter(torch.zeros(1))
    optimizer = SignSGD([weight], lr=1.0, vote=vote)
    weight.grad = torch.zeros(1)
    optimizer.step()
    assert weight.item() == -1.0
    assert optimizer.vote is vote
    assert not optimizer.vote_is_default
    assert isinstance(SignSGD([weight]).vote, MajorityVote)
