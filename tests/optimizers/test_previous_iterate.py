"""``previous_iterate="rebuild"``: the last vote in place of a copy of the last point."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_signvr.optimizers import SSVR, AnchoredOptimizer
from lightning_signvr.optimizers.dvrsign import DVRSign
from lightning_signvr.optimizers.marslion import MARSLion
from lightning_signvr.optimizers.moved_back import CPU_BLOCK, Move, moved_back
from lightning_signvr.optimizers.rank_states import own_rank_state, with_rank_states
from lightning_signvr.optimizers.snapshot import SnapshotOptimizer
from lightning_signvr.optimizers.ssvrfs import SSVRFS
from lightning_signvr.optimizers.ssvrmv import SSVRMV
from lightning_signvr.voting import MeanVote
from tests.optimizers.problems import SIZE, loss_of
from tests.workers import WorkerError, run_workers

STEPS, LR = 50, 1 / 16
METHODS: dict[str, Callable[..., AnchoredOptimizer]] = {
    "SSVR": SSVR,
    "SSVRMV": SSVRMV,
    "SSVRFS": SSVRFS,
    "MARSLion": MARSLion,
    "DVRSign": DVRSign,
}
VOTE_KEYS = {"previous_alpha", "previous_decay", "previous_vote"}


def step_on(optimizer: AnchoredOptimizer, loss: Callable[[], Tensor]) -> None:
    """One step; where it is due, a snapshot on the step's own samples before it."""
    if isinstance(optimizer, SnapshotOptimizer) and optimizer.snapshot_due:
        with optimizer.take_snapshot():
            loss().backward()

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


def train(rank: int, method: str, mode: str, **options: Any) -> Tensor:
    weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimizer = METHODS[method]([weight], LR, previous_iterate=mode, **options)
    for step in range(STEPS):
        step_on(optimizer, lambda step=step: loss_of(weight, rank, step))  # type: ignore[misc]
    return weight.detach()


@pytest.mark.parametrize("method", METHODS)
def test_is_the_copy_where_arithmetic_is_exact(method: str) -> None:
    """All points are multiples of 1/16."""
    assert torch.equal(train(0, method, "rebuild"), train(0, method, "copy"))
    assert torch.equal(train(0, method, "rebuild", maximize=True), train(0, method, "copy", maximize=True))


def train_both(rank: int) -> list[tuple[Tensor, Tensor]]:
    return [(train(rank, method, "rebuild"), train(rank, method, "copy")) for method in METHODS]


def test_workers_agree() -> None:
    first, second = run_workers(train_both, 2)
    for ours, theirs in zip(first, second, strict=True):
        assert all(torch.equal(tensor, ours[0]) for tensor in (*ours, *theirs))


# -- ordinary numbers -----------------------------------------------------------------------------


def noisy_loss(model: nn.Module, seed: int) -> Tensor:
    inputs, targets = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(seed)).unbind()
    output: Tensor = model(inputs)
    return (output - targets.roll(1, dims=1)).square().mean()


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))


def values_of(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().view(-1) for p in model.parameters()])


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("method", METHODS)
def test_is_close_to_the_copy(method: str, weight_decay: float) -> None:
    """At each step: next to the true point; and over 50 steps with a schedule as good as with the copy."""
    losses = []
    for mode in ("copy", "rebuild"):
        model = small_model()
        lr = torch.tensor(0.01)
        optimizer = METHODS[method](model.parameters(), lr, weight_decay=weight_decay, previous_iterate=mode)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 10, gamma=0.5)
        for step in range(STEPS):
            before = values_of(model)
            step_on(optimizer, lambda model=model, step=step: noisy_loss(model, step))  # type: ignore[misc]
            schedule.step()
            here = values_of(model)
            with optimizer.at_previous_iterate():
                torch.testing.assert_close(values_of(model), before, rtol=3e-7, atol=2e-9)
            assert torch.equal(values_of(model), here)
        losses.append(noisy_loss(model, 1000).item())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def replicas(rank: int) -> list[Tensor]:
    """Train with weight decay; once more from a gathered state, after half of the steps."""
    model = small_model()
    optimizer = SSVR(model.parameters(), 0.01, weight_decay=0.1, previous_iterate="rebuild")
    for step in range(20):
        step_on(optimizer, lambda step=step: noisy_loss(model, 2 * step + rank))  # type: ignore[misc]
        if step == 9:
            gathered = [with_rank_states(optimizer.state_dict(), torch.device("cpu"))]
            torch.distributed.broadcast_object_list(gathered)
            state = own_rank_state(copy.deepcopy(gathered[0]), rank, 2)
            twin = copy.deepcopy(model)
    resumed = SSVR(twin.parameters(), 1.0)
    resumed.load_state_dict(state)
    for step in range(10, 20):
        step_on(resumed, lambda step=step: noisy_loss(twin, 2 * step + rank))  # type: ignore[misc]
    return [values_of(model), values_of(twin)]


def test_replicas_and_resumed_runs_stay_bit_equal() -> None:
    first, second = run_workers(replicas, 2)
    assert all(torch.equal(tensor, first[0]) for tensor in (*first, *second))


@pytest.mark.parametrize("way", ["save", "deepcopy"])
def test_resumes(way: str) -> None:
    model = small_model()
    optimizer = SSVR(model.parameters(), 0.01, weight_decay=0.1, previous_iterate="rebuild")
    for step in range(5):
        step_on(optimizer, lambda step=step: noisy_loss(model, step))  # type: ignore[misc]
    if way == "deepcopy":
        twin, resumed = copy.deepcopy((model, optimizer))
    else:
        buffer = io.BytesIO()
        torch.save(optimizer.state_dict(), buffer)
        buffer.seek(0)
        twin = copy.deepcopy(model)
        resumed = SSVR(twin.parameters(), 1.0)
        resumed.load_state_dict(torch.load(buffer, weights_only=True))
    assert resumed.active_anchors() == ["previous"]
    for step in range(5, 10):
        step_on(optimizer, lambda step=step: noisy_loss(model, step))  # type: ignore[misc]
        step_on(resumed, lambda step=step: noisy_loss(twin, step))  # type: ignore[misc]
    assert torch.equal(values_of(model), values_of(twin))


# -- state ----------------------------------------------------------------------------------------


def test_state_is_an_eighth_of_a_byte_per_parameter() -> None:
    sizes = {}
    for mode in ("copy", "rebuild"):
        weights = [nn.Parameter(torch.randn(size)) for size in (4096, 1024)]
        optimizer = DVRSign(weights, LR, previous_iterate=mode)  # type: ignore[arg-type]
        step_on(optimizer, lambda weights=weights: sum((w**2).sum() for w in weights))  # type: ignore[misc]
        states = [optimizer.state[weight] for weight in weights]
        tensors = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        sizes[mode] = sum(tensor.untyped_storage().nbytes() for tensor in tensors) / 5120
        assert all(set(state) == ({"previous_iterate"} if mode == "copy" else VOTE_KEYS) for state in states)
    assert sizes == {"copy": 4.0, "rebuild": 0.125}


def test_what_was_not_decided_or_not_voted_on_stays() -> None:
    first, second = (nn.Parameter(torch.arange(5.0)) for _ in range(2))
    optimizer = SSVR([first, second], 0.5, weight_decay=0.5, previous_iterate="rebuild")
    first.grad = torch.tensor([1.0, 0.0, -1.0, 0.0, 1.0])
    optimizer.step()
    assert optimizer.active_anchors() == ["previous"]
    assert set(optimizer.state[first]) == {"estimate", "previous_undecided", *VOTE_KEYS}
    assert set(optimizer.state[second]) == {"previous_alpha", "previous_decay"}
    assert first.tolist() == [-0.5, 0.75, 2.0, 2.25, 2.5]
    with optimizer.at_previous_iterate():
        assert first.tolist() == second.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert optimizer.state[first]["previous_undecided"].untyped_storage().nbytes() == 1
    first.grad, second.grad = torch.ones(5), torch.tensor([1.0, 0.0, -1.0, 0.0, 1.0])
    with optimizer.at_previous_iterate():
        first.grad = torch.ones(5)
    optimizer.step()
    assert set(optimizer.state[first]) == {"estimate", *VOTE_KEYS}  # nothing undecided here
    assert set(optimizer.state[second]) == {"estimate", "previous_undecided", *VOTE_KEYS}


def test_the_mode_may_change() -> None:
    weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimizer = SSVR([weight], LR)
    for step in range(STEPS):
        [group] = optimizer.param_groups
        group["previous_iterate"] = "rebuild" if step % 5 < 3 else "copy"
        step_on(optimizer, lambda step=step: loss_of(weight, 0, step))  # type: ignore[misc]
        expected = VOTE_KEYS if step % 5 < 3 else {"previous_iterate"}
        assert set(optimizer.state[weight]) - {"previous_undecided"} == {"estimate", *expected}
    assert torch.equal(weight.detach(), train(0, "SSVR", "copy"))
    group["correction"] = 0.0
    step_on(optimizer, lambda: loss_of(weight, 0, 0))
    assert set(optimizer.state[weight]) == {"estimate"}


# -- there and back -------------------------------------------------------------------------------


def bits_of(values: Tensor) -> Tensor:
    return values.detach().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()])


def random_move(numel: int, alpha: float, decay: float, undecided: bool) -> Move:
    planes = torch.randint(0, 256, (2, (numel + 7) // 8), generator=torch.Generator().manual_seed(1))
    negative, zeros = planes.to(torch.uint8).unbind()
    return Move(alpha, decay, negative.contiguous(), zeros.contiguous() if undecided else None)


def values_of_kind(kind: str, numel: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if kind == "weights":
        return (torch.randn(numel, generator=generator) * 0.02).to(dtype)
    if kind == "special":
        tiny = torch.finfo(dtype).smallest_normal
        numbers = [0.0, -0.0, 1.0, -1.0, tiny, -tiny / 2, float("inf"), float("-inf"), float("nan"), 3e4]
        return torch.tensor(numbers, dtype=dtype).repeat(numel // len(numbers) + 1)[:numel]
    size = torch.empty(0, dtype=dtype).element_size()
    return torch.randint(0, 256, (numel, size), generator=generator).to(torch.uint8).view(dtype).view(-1)


@pytest.mark.filterwarnings("ignore:invalid value")  # signalling NaNs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["weights", "special", "all bits"])
@pytest.mark.parametrize("numel", [0, 1, 13, CPU_BLOCK + 9])
def test_comes_back_to_the_last_bit(numel: int, kind: str, dtype: torch.dtype) -> None:
    parameter = nn.Parameter(values_of_kind(kind, numel, dtype))
    before = bits_of(parameter).clone()
    for alpha, decay in ((-1e-4, 1.0), (3.0, 1.0), (0.0, 1.0), (-1e-3, 0.9999), (0.02, 1e-3)):
        for undecided in (False, True):
            with moved_back(parameter, random_move(numel, alpha, decay, undecided)):
                if kind == "weights" and numel and alpha and not undecided:
                    assert not torch.equal(bits_of(parameter), before)
            assert torch.equal(bits_of(parameter), before)


def test_comes_back_in_any_layout_and_after_a_failure() -> None:
    parameter = nn.Parameter(values_of_kind("weights", 35, torch.float32).view(5, 7).t())
    assert not parameter.is_contiguous()
    before, move = parameter.detach().clone(), random_move(35, -1e-2, 0.99, undecided=True)

    def fail() -> None:
        with moved_back(parameter, move):
            contiguous = before.clone(memory_format=torch.contiguous_format)
            with moved_back(contiguous, move):
                assert torch.equal(parameter, contiguous)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(parameter, before)


class ShortOfMemory(TorchDispatchMode):
    """Inside of it the fourth tensor cannot be copied: the second block's way back."""

    copies = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.clone.default:
            self.copies += 1
            if self.copies == 4:
                raise MemoryError
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", ["contiguous", "strided"])
def test_comes_back_from_halfway(layout: str) -> None:
    whole = torch.randn(3 * CPU_BLOCK, 2, generator=torch.Generator().manual_seed(0))
    parameter = nn.Parameter(whole[:, 0] if layout == "strided" else whole[:, 0].contiguous())
    before = parameter.detach().clone()
    move = random_move(parameter.numel(), -0.1, 0.9, undecided=False)

    def visit() -> None:
        with ShortOfMemory(), moved_back(parameter, move):
            raise AssertionError("not reached")

    with pytest.raises(MemoryError):
        visit()
    assert torch.equal(parameter.detach(), before)


def most_allocated(do: Callable[[], object]) -> int:
    """The most memory that torch held beyond what it held before, in bytes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        do()
    results = profiler.profiler.kineto_results  # type: ignore[union-attr]
    changes = [event for event in results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in changes))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1, 10.0])
def test_a_visit_takes_little_memory(weight_decay: float) -> None:
    """Far less than a copy of the parameters: a block's temporary tensors, and the few exceptions."""
    weight = nn.Parameter(torch.randn(40 * CPU_BLOCK, generator=torch.Generator().manual_seed(0)) * 0.02)
    optimizer = DVRSign([weight], 1e-3, weight_decay=weight_decay, previous_iterate="rebuild")
    step_on(optimizer, lambda: (weight**2).sum())
    weight.grad = None

    def visit() -> None:
        with optimizer.at_previous_iterate():
            pass

    most = most_allocated(visit)
    assert 4 * CPU_BLOCK <= most < weight.nbytes / 10
    assert weight.nbytes <= most_allocated(weight.detach().clone)  # what is measured is the memory


# -- refusals -------------------------------------------------------------------------------------


def test_a_step_without_a_way_back_is_refused() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = SSVR([weight], lr=0.5, weight_decay=2.0, previous_iterate="rebuild")
    weight.grad = torch.ones(3)
    with pytest.raises(ValueError, match=r'lr \* weight_decay below 1, got 0.5 \* 2.0.*"copy"'):
        optimizer.step()
    assert weight.tolist() == [1.0] * 3
    assert not optimizer.state[weight]
    optimizer.param_groups[0]["previous_iterate"] = "copy"
    optimizer.step()


def step_on_means(rank: int) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = SSVR([weight], previous_iterate="rebuild", vote=MeanVote())
    weight.grad = torch.ones(3)
    try:
        optimizer.step()
    finally:
        assert weight.tolist() == [1.0] * 3


def test_an_outcome_with_magnitudes_is_refused() -> None:
    with pytest.raises(WorkerError, match=r'outcome is signs, got VotedMeans: use previous_iterate="copy"'):
        run_workers(step_on_means, 2)


def test_parameters_that_change_inside_the_block_are_refused() -> None:
    embedding = nn.Embedding(4, 3, max_norm=0.01)
    optimizer = SSVR(embedding.parameters(), previous_iterate="rebuild")
    step_on(optimizer, lambda: embedding(torch.arange(2)).sum())
    with pytest.raises(RuntimeError, match=r'changed in place.*previous_iterate="copy"'):
        step_on(optimizer, lambda: embedding(torch.arange(4)).sum())


@pytest.mark.parametrize("method", METHODS)
def test_unknown_modes_are_named(method: str) -> None:
    with pytest.raises(ValueError, match="previous_iterate must be one of 'copy', 'rebuild', got 'guess'"):
        METHODS[method]([nn.Parameter(torch.zeros(1))], previous_iterate="guess")
