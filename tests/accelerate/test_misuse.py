"""Every misuse is an error that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import LBFGS, SGD, Optimizer

from lightning_signvr import LocalVote, Signum
from lightning_signvr.accelerate import SignVote, sign_vote
from lightning_signvr.optimizers import SSVR
from tests.accelerate.helpers import new_accelerator
from tests.workers import run_workers

BATCH = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def ssvr(parameters: Any) -> SSVR:
    return SSVR(parameters, lr=0.01)


def prepared(
    make: Callable[[Any], Optimizer] = ssvr, precision: str = "no"
) -> tuple[Accelerator, SignVote, nn.Module, Any]:
    accelerator = new_accelerator(precision)
    sv = sign_vote(accelerator)
    model = nn.Linear(3, 1)
    model, optimizer = accelerator.prepare(model, make(model.parameters()))
    return accelerator, sv, model, optimizer


def loss_of(model: nn.Module) -> Tensor:
    loss: Tensor = model(BATCH).square().mean()
    return loss


# -- sign_vote(accelerator) -----------------------------------------------------------------------


def test_something_else() -> None:
    with pytest.raises(TypeError, match=r"must be an accelerate.Accelerator, got Linear"):
        sign_vote(nn.Linear(1, 1))


@pytest.mark.parametrize("what", ["model", "optimizer"])
def test_prepared_before(what: str) -> None:
    accelerator, model = new_accelerator(), nn.Linear(3, 1)
    accelerator.prepare(model if what == "model" else SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"call sign_vote\(accelerator\) right after Accelerator\(...\)"):
        sign_vote(accelerator)


def test_twice() -> None:
    accelerator, *_ = prepared()
    with pytest.raises(ValueError, match="called twice on this accelerator: keep what the first call"):
        sign_vote(accelerator)


@pytest.mark.parametrize("rules", [{"ties": "never"}, {"zeros": "never"}, {"seed": -1}], ids=str)
def test_bad_rules(rules: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(rules))):
        sign_vote(new_accelerator(), **rules)


@pytest.mark.parametrize("kind", ["DEEPSPEED", "FSDP", "MEGATRON_LM", "XLA"])
def test_what_shards_the_model(kind: str) -> None:
    accelerator = new_accelerator()
    accelerator.state.distributed_type = DistributedType[kind]  # those packages are not installed
    with pytest.raises(ValueError, match=f"configured for {kind}, and sign_vote needs a whole replica"):
        sign_vote(accelerator)


def test_float8() -> None:
    accelerator = new_accelerator()
    accelerator.state._mixed_precision = "fp8"
    with pytest.raises(ValueError, match=r"mixed_precision='fp8' .*: use .no., .bf16."):
        sign_vote(accelerator)


def test_a_communication_hook() -> None:
    hook = DistributedDataParallelKwargs(comm_hook=DDPCommunicationHookType.FP16)
    with pytest.raises(ValueError, match=r"comm_hook='fp16'\) would never run"):
        sign_vote(new_accelerator(kwargs_handlers=[hook]))
    sign_vote(new_accelerator(kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)]))


def test_processes_that_would_train_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = new_accelerator()
    monkeypatch.setenv("WORLD_SIZE", "2")  # `torchrun --nproc-per-node 2` without GPUs
    with pytest.raises(
        RuntimeError, match=r"train alone, .* Accelerator\(cpu=True\), or set ACCELERATE_USE_"
    ):
        sign_vote(accelerator)


# -- prepare --------------------------------------------------------------------------------------


def _wrap(rank: int) -> str:
    accelerator = new_accelerator()
    sign_vote(accelerator)
    with pytest.raises(ValueError, match="is wrapped in Dist") as error:
        accelerator.prepare(DistributedDataParallel(nn.Linear(3, 1)))
    return str(error.value)


def test_a_model_in_ddp() -> None:
    assert "prepare the bare module" in run_workers(_wrap, 1)[0]


def test_an_optimizer_prepared_twice() -> None:
    accelerator, sv, model, optimizer = prepared()
    assert accelerator.prepare(optimizer) is optimizer  # which Accelerate allows
    assert accelerator.prepare(model) is model
    assert len(sv.optimizers) == 1
    with pytest.raises(ValueError, match="this SSVR was prepared twice: use what the first call"):
        accelerator.prepare(optimizer.optimizer)


def test_lbfgs() -> None:
    with pytest.raises(TypeError, match="LBFGS"):
        prepared(LBFGS)


def _vote_alone(rank: int) -> str:
    with pytest.raises(ValueError, match="LocalVote") as error:
        prepared(lambda parameters: Signum(parameters, lr=0.1, vote=LocalVote()))
    return str(error.value)


def test_a_local_vote() -> None:
    assert "the workers would part: leave out `vote`" in run_workers(_vote_alone, 2)[1]


def test_a_model_that_was_not_prepared() -> None:
    accelerator = new_accelerator()
    sign_vote(accelerator)
    model = nn.Linear(3, 1)
    optimizer = accelerator.prepare(Signum(model.parameters(), lr=0.1))
    accelerator.gradient_state._set_sync_gradients(True)
    loss_of(model).backward()
    with pytest.raises(
        RuntimeError, match=r"a model that was not prepared.*pass the model to accelerator\.prep"
    ):
        optimizer.step()


# -- the training loop ----------------------------------------------------------------------------


def test_nothing_prepared() -> None:
    sv = sign_vote(new_accelerator())
    with pytest.raises(RuntimeError, match=r"call accelerator.prepare\(model, optimizer, ...\) first"):
        sv.backward(lambda: torch.zeros(()))


def test_a_loss_instead_of_a_function() -> None:
    _, sv, model, _ = prepared()
    with pytest.raises(TypeError, match=r"got Tensor: write sv.backward\(lambda: "):
        sv.backward(loss_of(model))  # type: ignore[arg-type]


def test_a_missing_second_gradient() -> None:
    accelerator, sv, model, optimizer = prepared()
    for _ in range(2):
        with accelerator.accumulate(model):
            sv.backward(lambda: loss_of(model))
            optimizer.step()
            optimizer.zero_grad()
    accelerator.gradient_state._set_sync_gradients(True)
    accelerator.backward(loss_of(model))
    with pytest.raises(
        RuntimeError, match="SSVR needs the gradients of this step's samples at 'previous' too"
    ):
        optimizer.step()


def test_a_closure_under_a_loss_scale() -> None:
    accelerator, _, model, optimizer = prepared(precision="fp16")
    accelerator.gradient_state._set_sync_gradients(True)
    accelerator.backward(loss_of(model))
    with pytest.raises(ValueError, match=r"never unscaled: call sv\.backward\(loss_of\), then"):
        optimizer.step(lambda: loss_of(model))


@pytest.mark.parametrize("kind", [Signum, SGD])
def test_a_closure_without_a_loss_scale(kind: Callable[..., Optimizer]) -> None:
    accelerator, sv, model, optimizer = prepared(lambda parameters: kind(parameters, lr=0.1))
    accelerator.gradient_state._set_sync_gradients(True)

    def closure() -> Tensor:
        loss = loss_of(model)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert sv.votes[0].step == 1


def test_clipping_by_value() -> None:
    accelerator, _, model, _ = prepared()
    with pytest.raises(
        ValueError, match=r"two gradients of SSVR differently.*use accelerator\.clip_grad_norm_"
    ):
        accelerator.clip_grad_value_(model.parameters(), 0.1)
    for make in (lambda p: Signum(p, lr=0.1), lambda p: SSVR(p, lr=0.1, correction=0.0)):
        accelerator, sv, model, _ = prepared(make)
        sv.backward(lambda model=model: loss_of(model))
        accelerator.clip_grad_value_(model.parameters(), 0.001)
        assert float(model.weight.grad.abs().max()) == pytest.approx(0.001)


def test_clipping_half_of_an_optimizer() -> None:
    accelerator, sv, model, _ = prepared()
    sv.backward(lambda: loss_of(model))
    with pytest.raises(ValueError, match=r"some of the parameters of SSVR .*: clip all of them together"):
        accelerator.clip_grad_norm_(model.weight, 0.1)


def test_which_of_several_optimizers() -> None:
    accelerator = new_accelerator(gradient_accumulation_steps=1)
    sv = sign_vote(accelerator)
    first, second = nn.Linear(3, 1), nn.Linear(3, 1)
    first, second, one, two = accelerator.prepare(
        first, second, ssvr(first.parameters()), ssvr(second.parameters())
    )
    with pytest.raises(
        ValueError, match=r"2 optimizers are prepared, .* sv.backward\(loss_of, optimizer=...\)"
    ):
        sv.backward(lambda: loss_of(first))
    with pytest.raises(ValueError, match="optimizer is a SGD that this accelerator has not prepared"):
        sv.backward(lambda: loss_of(first), optimizer=SGD(first.parameters(), lr=0.1))
    for _ in range(3):
        for model, optimizer in ((first, one), (second, two)):
            sv.backward(lambda model=model: loss_of(model), optimizer)
            accelerator.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
    assert [vote.step for vote in sv.votes] == [3, 3]
    metrics = sv.metrics()
    assert metrics["sign_vote/agreement/1"] == 1.0
    assert metrics["comm/bytes_sent/0"] == 0  # nobody to send to
    assert "comm/savings_vs_fp32/0" not in metrics
    assert sv.metrics() == {}


def test_freed_memory() -> None:
    accelerator, sv, model, _ = prepared(lambda parameters: SGD(parameters, lr=1.0))
    optimizer = sv.optimizers[0]
    accelerator.free_memory()
    assert sv.optimizers == []
    model.weight.grad = torch.full_like(model.weight, 0.5)
    before = model.weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before - 0.5)  # no vote
    model, _ = accelerator.prepare(nn.Linear(3, 1), SGD(model.parameters(), lr=1.0))
    assert len(sv.optimizers) == 1


def test_any_other_optimizer_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    prepared(lambda parameters: SGD(parameters, lr=0.1))
    assert "SGD is not a sign optimizer; it steps on the majority sign" in caplog.text
