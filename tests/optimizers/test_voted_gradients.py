"""Other torch optimizers on voted gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_signvr import MajorityVote, vote_gradients
from tests.workers import run_workers


def adamw(rank: int) -> tuple[Tensor, list[float], Tensor]:
    torch.manual_seed(0)
    weight, sometimes = nn.Parameter(torch.zeros(20)), nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([weight, sometimes], lr=0.1)
    vote_gradients(optimizer, MajorityVote(ties="zero"))
    for step in range(10):
        weight.grad = torch.randn(20, generator=torch.Generator().manual_seed(100 * rank + step))
        sometimes.grad = torch.ones(2) if rank == step % 3 else None
        optimizer.step()
    assert weight.grad is not None
    return weight.detach(), weight.grad.tolist(), sometimes.detach()


def test_replicas_of_adamw_stay_equal_and_see_signs() -> None:
    results = run_workers(adamw, 3)
    for weight, gradient, sometimes in results:
        assert torch.equal(weight, results[0][0])
        assert set(gradient) <= {-1.0, 0.0, 1.0}
        assert torch.equal(sometimes, results[0][2])
        assert bool((sometimes < 0).all())
    signs = sum(
        torch.randn(20, generator=torch.Generator().manual_seed(100 * rank + 9)).sign() for rank in range(3)
    )
    assert results[0][1] == torch.as_tensor(signs).sign().tolist()


@pytest.mark.parametrize("style", ["positional", "keyword", "none"])
def test_the_vote_comes_after_the_closure(style: str) -> None:
    weight = nn.Parameter(torch.tensor([3.0, -3.0]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    vote_gradients(optimizer, MajorityVote())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss

    if style == "positional":
        assert optimizer.step(closure) == 18
    elif style == "keyword":
        assert optimizer.step(closure=closure) == 18
    else:
        closure()
        optimizer.step()
    assert weight.tolist() == [2.0, -2.0]


def test_the_handle_ends_it() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    vote_gradients(optimizer, MajorityVote()).remove()
    weight.grad = torch.tensor([4.0])
    optimizer.step()
    assert weight.item() == -4.0


def test_lbfgs_is_refused() -> None:
    with pytest.raises(TypeError, match="LBFGS"):
        vote_gradients(torch.optim.LBFGS([nn.Parameter(torch.zeros(1))]), MajorityVote())


def test_sparse_gradients_are_refused() -> None:
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=1.0)
    vote_gradients(optimizer, MajorityVote())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="gradient of parameter 0 is sparse"):
        optimizer.step()


def test_fused_unscaling_is_refused() -> None:
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([weight], fused=True)
    vote_gradients(optimizer, MajorityVote())
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale((weight * 2).sum()).backward()
    with pytest.raises(ValueError, match="fused=False"):
        scaler.step(optimizer)
