"""The second pass of a microbatch: same samples, same masks, no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchmetrics import MeanMetric

from lightning_signvr.amp import SharedGradScaler
from lightning_signvr.optimizers import SSVR, Signum
from lightning_signvr.optimizers.random_state import RandomState
from lightning_signvr.replay import Replay, Surroundings

LR, BETA = 0.01, 0.25


class Net(nn.Module):
    """Dropout, BatchNorm, a spectral norm (which changes a buffer), tied weights and a metric."""

    def __init__(self, checkpointing: str = "none") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(6, 8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3))
        self.normed = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
        self.head = nn.Linear(8, 6)
        self.head.weight = nn.Parameter(self.embed.weight.T.detach().clone())
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.body[0].weight
        self.mean_output = MeanMetric()
        self.checkpointing = checkpointing

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.embed(inputs))
        if self.checkpointing == "none":
            hidden = self.body(hidden)
        else:
            hidden = checkpoint(self.body, hidden, use_reentrant=self.checkpointing == "reentrant")
        output: Tensor = self.head(self.tied(self.normed(hidden)))
        self.mean_output(output.detach())
        return output


def batches() -> Tensor:
    return torch.randn(12, 16, 6, generator=torch.Generator().manual_seed(1))


def simulate(net: Net, accumulate: int) -> list[Tensor]:
    """SSVR by hand: a copy of the net at the previous iterate computes the second gradient."""
    parameters = list(net.parameters())
    estimates: list[Tensor] | None = None
    previous: list[Tensor] = []
    for group in batches().split(accumulate):
        fresh = [torch.zeros_like(p) for p in parameters]
        old = [torch.zeros_like(p) for p in parameters]
        for batch in group:
            twin = copy.deepcopy(net)
            before = RandomState.capture()
            for total, gradient in zip(
                fresh, torch.autograd.grad(net(batch).square().mean(), parameters), strict=True
            ):
                total += gradient
            if previous:
                after = RandomState.capture()
                for p, value in zip(twin.parameters(), previous, strict=True):
                    p.data.copy_(value)
                before.restore()
                loss = twin(batch).square().mean()
                for total, gradient in zip(
                    old, torch.autograd.grad(loss, list(twin.parameters())), strict=True
                ):
                    total += gradient
                after.restore()
        estimates = (
            fresh
            if estimates is None
            else [(v - o) * (1 - BETA) + g for v, o, g in zip(estimates, old, fresh, strict=True)]
        )
        previous = [p.detach().clone() for p in parameters]
        for p, v in zip(parameters, estimates, strict=True):
            p.data.sub_(LR * v.sign())
    return [p.detach() for p in parameters]


def train(net: Net, accumulate: int, forward: Callable[[Tensor], Tensor]) -> list[Tensor]:
    optimizer = SSVR(net.parameters(), LR, BETA)
    replay = Replay(optimizer, net)
    for group in batches().split(accumulate):
        optimizer.zero_grad()
        for batch in group:
            replay.backward(lambda batch=batch: forward(batch).square().mean())
        optimizer.step()
    return [p.detach() for p in net.parameters()]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("variant", ["none", "reentrant", "nonreentrant", "compile"])
def test_equals_a_simulation_with_a_copy_of_the_model(variant: str, accumulate: int) -> None:
    checkpointing = variant if "reentrant" in variant else "none"
    ours, reference = Net(checkpointing), Net()
    forward = torch.compile(ours, backend="aot_eager") if variant == "compile" else ours
    torch.manual_seed(5)
    parameters = train(ours, accumulate, forward)
    random_state = torch.get_rng_state()
    torch.manual_seed(5)
    expected = simulate(reference, accumulate)
    for mine, theirs in zip(parameters, expected, strict=True):
        assert torch.equal(mine, theirs)
    if checkpointing == "none":  # torch's checkpointing itself updates buffers twice
        for mine, theirs in zip(ours.buffers(), reference.buffers(), strict=True):
            assert torch.equal(mine, theirs)
    assert ours.body[1].num_batches_tracked == (12 if checkpointing == "none" else 24)
    assert torch.equal(ours.mean_output.compute(), reference.mean_output.compute())
    assert ours.mean_output.update_count == 12
    assert torch.equal(random_state, torch.get_rng_state())


def test_costs_nothing_without_anchors() -> None:
    net = Net()
    passes = []
    net.register_forward_hook(lambda *_: passes.append(1))
    for optimizer in (Signum(net.parameters()), SSVR(net.parameters(), correction=0.0)):
        replay = Replay(optimizer, net)
        for batch in batches()[:3]:
            replay.backward(lambda batch=batch: net(batch).mean())
            optimizer.step()
    assert len(passes) == 6


def train_scaled(scale: float | None) -> list[Tensor]:
    net = Net()
    optimizer = SSVR(net.parameters(), LR, BETA)
    scaler = SharedGradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    replay = Replay(optimizer, net)
    torch.manual_seed(5)
    for batch in batches():
        optimizer.zero_grad()
        replay.backward(
            lambda batch=batch: net(batch).square().mean(), lambda loss: scaler.scale(loss).backward()
        )
        scaler.step(optimizer)
        scaler.update()
    return [p.detach() for p in net.parameters()]


def test_scaled_gradients_are_unscaled_at_both_points() -> None:
    for plain, scaled in zip(train_scaled(None), train_scaled(1024.0), strict=True):
        assert torch.equal(plain, scaled)


def test_an_overflow_at_the_anchor_skips_the_step_and_keeps_the_pair() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = SSVR([weight], LR, BETA)
    scaler = SharedGradScaler("cpu", init_scale=8.0)
    for step in range(4):
        optimizer.zero_grad()
        scaler.scale(weight.square().sum()).backward()
        with optimizer.at_previous_iterate():
            scaler.scale(weight.square().sum() * (float("inf") if step == 2 else 1.0)).backward()
        before = [weight.detach().clone(), *(v.clone() for v in optimizer.state[weight].values())]
        scaler.step(optimizer)
        scaler.update()
        after = [weight.detach(), *optimizer.state[weight].values()]
        assert all(map(torch.equal, before, after)) == (step == 2)
    assert scaler.get_scale() == 4.0
    assert torch.equal(weight.detach(), torch.full((2,), 1.0).sub_(LR).sub_(LR).sub_(LR))
    assert torch.equal(optimizer.state[weight]["previous_iterate"], torch.full((2,), 1.0).sub_(LR).sub_(LR))


def test_buffers_that_were_replaced_are_put_back() -> None:
    module = nn.Module()
    module.register_buffer("count", torch.zeros(1))
    original = module.count
    before = Surroundings.capture(module)
    module.count = module.count + 1
    before.restore()
    assert module.count is original
    assert module.count == 0
