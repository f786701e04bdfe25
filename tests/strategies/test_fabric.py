"""Fabric(strategy="sign_vote"), with real workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning.fabric
import lightning_fabric
import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, AdamW
from torch.utils.data import DataLoader, TensorDataset

import lightning_signvr.fabric
from lightning_signvr import LocalVote
from lightning_signvr.optimizers import SSVR, EFSignum, SignSGD
from lightning_signvr.replay import Replay
from lightning_signvr.strategies import fabric_alone, fabric_of_lightning
from tests.strategies.helpers import (
    LOSS_SCALE,
    LR,
    LogLines,
    batches,
    flat,
    parameters_of,
    same_on_all,
    signum,
    state_of,
)
from tests.workers import WorkerError, run_workers

NAMES = ["sign_vote", "sign_vote_spawn", "sign_vote_fork", "sign_vote_notebook"]
WORKERS, STEPS, SAVED_AT = 2, 6, 3
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "Signum": signum,  # two workers and ties="random": half of the coordinates are decided by coins
    "SSVR": lambda parameters: SSVR(parameters, lr=LR),
    "EFSignum": lambda parameters: EFSignum(parameters, lr=LR),  # with a state at each shard's owner
    "AdamW": lambda parameters: AdamW(parameters, lr=LR),
}


def make_fabric(module: Any = lightning.fabric, **options: Any) -> Any:
    workers = dist.get_world_size()
    fabric = module.Fabric(**{"accelerator": "cpu", "devices": workers, "strategy": "sign_vote", **options})
    fabric.launch()
    return fabric


def float16(module: Any = lightning.fabric) -> dict[str, Any]:
    """``precision="16-mixed"`` would mean bfloat16 on the CPU."""
    scaler = torch.amp.GradScaler("cpu", init_scale=LOSS_SCALE)
    return {"plugins": [module.plugins.MixedPrecision("16-mixed", "cpu", scaler=scaler)]}


def make_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))


def squared_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    inputs, targets = batch
    loss: Tensor = (model(inputs) - targets).pow(2).mean()
    return loss


def train(fabric: Any, model: nn.Module, optimizer: Any, data: list[Any], **clipping: Any) -> None:
    replay = Replay(optimizer, model)
    for batch in data:
        optimizer.zero_grad()
        replay.backward(lambda batch=batch: squared_error(model, batch), fabric.backward)
        if clipping:
            fabric.clip_gradients(model, optimizer, **clipping)
        optimizer.step()


# -- checkpoints ----------------------------------------------------------------------------------


class End(NamedTuple):
    parameters: np.ndarray
    buffers: np.ndarray
    state: np.ndarray
    vote_step: int


def train_and_save(rank: int, name: str, path: str, resume: bool = False, die: bool = False) -> End:
    fabric = make_fabric()
    net = make_net(seed=rank)
    model, optimizer = fabric.setup(net, OPTIMIZERS[name](net.parameters()))
    state = {"model": model, "optimizer": optimizer, "step": 0}
    if resume:
        fabric.load(path, state)
        assert state["step"] == SAVED_AT
    data = batches(rank, STEPS)
    for step in range(state["step"], STEPS):
        train(fabric, model, optimizer, data[step : step + 1])
        if step + 1 == SAVED_AT and not resume:
            fabric.save(path, {**state, "step": step + 1})
        elif step + 1 > SAVED_AT and die:
            os.kill(os.getpid(), signal.SIGKILL)
    [vote] = fabric.strategy.votes
    return End(
        parameters_of(net), flat(b.double() for b in net.buffers()), state_of(optimizer.optimizer), vote.step
    )


def train_each(rank: int, folder: str, resume: bool) -> dict[str, End]:
    return {name: train_and_save(rank, name, f"{folder}/{name}.ckpt", resume=resume) for name in OPTIMIZERS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fabric")


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> list[dict[str, End]]:
    (folder / "whole").mkdir()
    return run_workers(train_each, WORKERS, str(folder / "whole"), False)


@pytest.fixture(scope="module")
def resumed(folder: Path, uninterrupted: Any) -> list[dict[str, End]]:
    return run_workers(train_each, WORKERS, str(folder / "whole"), True)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_run_equals_the_uninterrupted_one(name: str, uninterrupted: Any, resumed: Any) -> None:
    for rank in range(WORKERS):
        for got, expected in zip(resumed[rank][name], uninterrupted[rank][name], strict=True):
            np.testing.assert_array_equal(got, expected, err_msg=f"rank {rank}")
    assert same_on_all(own[name].parameters for own in resumed)
    assert resumed[0][name].vote_step == STEPS
    assert same_on_all(own[name].state for own in resumed) == (name == "AdamW")


@pytest.mark.parametrize("name", ["Signum", "SSVR"])
def test_a_killed_run_resumes_as_the_uninterrupted_one(name: str, folder: Path, uninterrupted: Any) -> None:
    path = str(folder / f"killed_{name}.ckpt")
    with pytest.raises(WorkerError, match="died without a word"):
        run_workers(train_and_save, WORKERS, name, path, False, True)
    for own, expected in zip(
        run_workers(train_and_save, WORKERS, name, path, True), uninterrupted, strict=True
    ):
        for got, wanted in zip(own, expected[name], strict=True):
            np.testing.assert_array_equal(got, wanted)


def load_alone(rank: int, path: str) -> None:
    fabric = make_fabric()
    net = make_net()
    model, optimizer = fabric.setup(net, signum(net.parameters()))
    fabric.load(path, {"model": model, "optimizer": optimizer})


@pytest.mark.parametrize("workers", [1, 3])
def test_resuming_with_another_number_of_workers_is_refused(
    workers: int, folder: Path, uninterrupted: Any
) -> None:
    with pytest.raises(WorkerError, match=rf"states of 2 worker\(s\), and this run has {workers}"):
        run_workers(load_alone, workers, str(folder / "whole" / "Signum.ckpt"))


# -- everything else, in one launch ---------------------------------------------------------------


class Overflowing(nn.Module):
    """Its gradient is infinite on the last worker in one of its forward passes."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.net, self.passes, self.at = make_net(), 0, at

    def forward(self, inputs: Tensor) -> Tensor:
        self.passes += 1
        overflows = self.passes == self.at and dist.get_rank() == dist.get_world_size() - 1
        result: Tensor = self.net(inputs) * (float("inf") if overflows else 1.0)
        return result


def own_gradients(rank: int) -> dict[str, Any]:
    fabric = make_fabric()
    net = make_net(seed=rank)
    model, optimizer = fabric.setup(net, SignSGD(net.parameters(), lr=LR))
    alone = make_net()
    [batch] = batches(rank, 1)
    squared_error(alone, batch).backward()
    with fabric.no_backward_sync(model):
        fabric.backward(squared_error(model, batch) * 0.0)
    fabric.backward(squared_error(model, batch))
    expected = flat(p.grad for p in alone.parameters())
    got = flat(p.grad for p in net.parameters())
    norm = fabric.clip_gradients(model, optimizer, max_norm=1e-3)
    return {
        "bare": model._forward_module is net,
        "gradients": (got, expected),
        "norm": (float(norm), float(np.linalg.norm(expected))),
        "clipped": float(np.linalg.norm(flat(p.grad for p in net.parameters()))),
    }


def clipped_pairs(rank: int) -> dict[str, Any]:
    """The two gradients of a step, clipped, over those that were not."""
    fabric = make_fabric()
    net = make_net()
    model, optimizer = fabric.setup(net, SSVR(net.parameters(), lr=LR))
    first, second = batches(rank, 2)
    train(fabric, model, optimizer, [first])
    optimizer.zero_grad()
    Replay(optimizer, model).backward(lambda: squared_error(model, second), fabric.backward)
    pairs = [[p.grad for p in net.parameters()], optimizer.anchor_gradients()]
    before = [flat(gradients) for gradients in pairs]
    fabric.clip_gradients(model, optimizer, max_norm=0.1)
    ratios = [flat(gradients) / old for gradients, old in zip(pairs, before, strict=True)]
    try:
        fabric.clip_gradients(model, optimizer, clip_val=0.1)
        message = ""
    except ValueError as error:
        message = str(error)
    return {"ratios": ratios, "by value": message}


def with_an_overflow(rank: int, method: str, error_if_nonfinite: bool = False) -> dict[str, Any]:
    fabric = make_fabric(**float16())
    passes = 2 * STEPS - 1 if method == "SSVR" else STEPS
    net = Overflowing(at=4 if method == "SSVR" else 3)  # in SSVR's second pass of step 3
    model, optimizer = fabric.setup(net, OPTIMIZERS[method](net.parameters()))
    moved, scales = [], []
    for batch in batches(rank, STEPS):
        before = parameters_of(net)
        train(fabric, model, optimizer, [batch], max_norm=1.0, error_if_nonfinite=error_if_nonfinite)
        moved.append(not np.array_equal(before, parameters_of(net)))
        scales.append(fabric.strategy.precision.scaler.get_scale())
    assert net.passes == passes
    return {"moved": moved, "scales": scales, "parameters": parameters_of(net)}


def refuse_overflow(rank: int) -> str:
    try:
        with_an_overflow(rank, "Signum", error_if_nonfinite=True)
    except RuntimeError as error:
        return str(error)
    return ""


def in_each_precision(rank: int) -> dict[str, np.ndarray]:
    results = {}
    for precision in ("32-true", "bf16-mixed", "bf16-true"):
        fabric = make_fabric(precision=precision)
        net = make_net(seed=rank)
        model, optimizer = fabric.setup(net, SSVR(net.parameters(), lr=LR))
        train(fabric, model, optimizer, batches(rank, 3), max_norm=1.0)
        results[precision] = parameters_of(net)
    return results


def with_a_closure(rank: int) -> tuple[Any, Any]:
    """Parameters and buffers: by ``step(closure)``, and by Replay."""
    ends = []
    for by_closure in (True, False):
        fabric = make_fabric()
        net = make_net()
        net.insert(3, nn.Dropout(0.5))
        model, optimizer = fabric.setup(net, SSVR(net.parameters(), lr=LR))
        torch.manual_seed(rank)
        if not by_closure:
            train(fabric, model, optimizer, batches(rank, 4))
        for batch in batches(rank, 4) if by_closure else ():

            def closure(batch: Any = batch, model: Any = model, optimizer: Any = optimizer) -> Tensor:
                optimizer.zero_grad()
                loss = squared_error(model, batch)
                fabric.backward(loss)  # noqa: B023
                return loss

            assert optimizer.step(closure).requires_grad
        ends.append(flat([*net.parameters(), *net.buffers()]))
    return tuple(ends)


def other_optimizers(rank: int) -> dict[str, Any]:
    lines = LogLines().lines
    fabric = make_fabric()
    net = make_net()
    model = fabric.setup(net)
    optimizer = fabric.setup_optimizers(SGD(net.parameters(), lr=LR))
    train(fabric, model, optimizer, batches(rank, 2))
    gradients = {value for p in net.parameters() for value in p.grad.flatten().tolist()}
    refusals = []
    for refused in (LBFGS(net.parameters()), SignSGD(net.parameters(), lr=LR, vote=LocalVote())):
        try:
            fabric.setup_optimizers(refused)
        except (TypeError, ValueError) as error:
            refusals.append(str(error))
    return {
        "log": list(lines),
        "gradients": gradients,
        "refusals": refusals,
        "parameters": parameters_of(net),
    }


def rules(rank: int) -> list[str]:
    strategy = lightning_signvr.fabric.SignVoteStrategy(ties="zero", zeros="random", seed=7)
    fabric = make_fabric(strategy=strategy)
    net = make_net()
    fabric.setup(net, signum(net.parameters()), SGD(net.parameters(), lr=LR))
    return [repr(vote) for vote in strategy.votes]


def in_both_namespaces(rank: int) -> list[np.ndarray]:
    results = []
    for module in (lightning.fabric, lightning_fabric):
        fabric = make_fabric(module)
        net = make_net(seed=rank)
        model, optimizer = fabric.setup(net, signum(net.parameters()))
        train(fabric, model, optimizer, batches(rank, 3))
        assert fabric.strategy.namespace == module.__name__
        results.append(parameters_of(net))
    return results


def states(rank: int, folder: str) -> dict[str, Any]:
    """What a state dict holds, and what becomes of other people's files."""
    fabric = make_fabric()
    net = make_net()
    model, optimizer = fabric.setup(net, signum(net.parameters()))
    train(fabric, model, optimizer, batches(rank, 2))
    own = state_of(optimizer.optimizer)
    keys = sorted(optimizer.state_dict()) if rank == 1 else []  # of one rank alone: nobody waits
    fabric.save(f"{folder}/own.ckpt", {"optimizer": optimizer})
    buffers = flat(b.double() for b in net.buffers())
    fabric.strategy.average_buffers()
    by_hand = signum(make_net().parameters())
    by_hand.load_state_dict(fabric.load(f"{folder}/own.ckpt")["optimizer"])
    if rank == 0:
        torch.save(optimizer.state_dict(), f"{folder}/raw.ckpt")
    fabric.barrier()
    try:
        fabric.load_raw(f"{folder}/raw.ckpt", optimizer)
        refusal = ""
    except RuntimeError as error:
        refusal = str(error)
    averaged = flat(b.double() for b in net.buffers())
    return {
        "keys": keys,
        "own": own,
        "by hand": state_of(by_hand),
        "refusal": refusal,
        "buffers": (buffers, averaged),
    }


def data(rank: int) -> list[int]:
    fabric = make_fabric()
    loader = fabric.setup_dataloaders(DataLoader(TensorDataset(torch.arange(8)), batch_size=2))
    return [int(value) for [batch] in loader for value in batch]


def play(rank: int, folder: str) -> dict[str, Any]:
    return {
        "own gradients": own_gradients(rank),
        "clipped pairs": clipped_pairs(rank),
        "overflow": {method: with_an_overflow(rank, method) for method in ("Signum", "SSVR")},
        "overflow is refused": refuse_overflow(rank),
        "precision": in_each_precision(rank),
        "closure": with_a_closure(rank),
        "other": other_optimizers(rank),
        "rules": rules(rank),
        "namespaces": in_both_namespaces(rank),
        "states": states(rank, folder),
        "data": data(rank),
    }


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_workers(play, WORKERS, str(tmp_path_factory.mktemp("states")))


def test_gradients_are_each_workers_own(played: Any) -> None:
    for own in (worker["own gradients"] for worker in played):
        assert own["bare"]
        np.testing.assert_array_equal(*own["gradients"])
        assert own["norm"][0] == pytest.approx(own["norm"][1])
        assert own["clipped"] == pytest.approx(1e-3, rel=1e-4)
    assert not same_on_all(worker["own gradients"]["gradients"][0] for worker in played)


def test_both_gradients_of_a_step_are_clipped_by_one_coefficient(played: Any) -> None:
    for own in (worker["clipped pairs"] for worker in played):
        ratios = np.concatenate(own["ratios"])
        ratios = ratios[np.isfinite(ratios)]
        assert 0 < ratios.max() < 0.5
        np.testing.assert_allclose(ratios, ratios[0], rtol=1e-5)
        assert "max_norm" in own["by value"]


@pytest.mark.parametrize("method", ["Signum", "SSVR"])
def test_all_workers_skip_the_step_in_which_one_overflows(method: str, played: Any) -> None:
    for own in (worker["overflow"][method] for worker in played):
        assert own["moved"] == [True, True, False, True, True, True]
        assert own["scales"] == [LOSS_SCALE] * 2 + [LOSS_SCALE / 2] * 4
    assert same_on_all(worker["overflow"][method]["parameters"] for worker in played)


def test_an_overflow_that_clipping_refuses_is_refused_on_all_workers(played: Any) -> None:
    assert all("error_if_nonfinite=False" in worker["overflow is refused"] for worker in played)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_replicas_stay_equal_in_each_precision(precision: str, played: Any) -> None:
    assert same_on_all(worker["precision"][precision] for worker in played)
    assert not np.array_equal(played[0]["precision"][precision], played[0]["precision"]["32-true"]) or (
        precision == "32-true"
    )


def test_a_closure_is_replayed_like_a_microbatch(played: Any) -> None:
    for by_closure, by_replay in (worker["closure"] for worker in played):
        np.testing.assert_array_equal(by_closure, by_replay)


def test_other_optimizers_step_on_voted_signs(played: Any) -> None:
    assert all(worker["other"]["gradients"] <= {-1.0, 0.0, 1.0} for worker in played)
    assert same_on_all(worker["other"]["parameters"] for worker in played)
    assert ["SGD is not a sign optimizer" in line for line in played[0]["other"]["log"]].count(True) == 1
    assert not any("not a sign optimizer" in line for line in played[1]["other"]["log"])
    for message, name in zip(played[0]["other"]["refusals"], ("LBFGS", "LocalVote"), strict=True):
        assert name in message


def test_the_strategys_rules_reach_every_optimizer(played: Any) -> None:
    assert played[0]["rules"] == ["MajorityVote(ties='zero', zeros='random', seed=7)"] * 2


def test_both_namespaces_train_alike(played: Any) -> None:
    assert same_on_all(parameters for worker in played for parameters in worker["namespaces"])


def test_a_state_dict_is_local_and_a_file_complete(played: Any) -> None:
    assert played[1]["states"]["keys"] == ["param_groups", "state"]
    for own in (worker["states"] for worker in played):
        np.testing.assert_array_equal(own["by hand"], own["own"])
        assert "states of 1 worker(s), and this run has 2" in own["refusal"]
    assert not same_on_all(worker["states"]["own"] for worker in played)


def test_buffers_can_be_averaged(played: Any) -> None:
    before, after = zip(*(worker["states"]["buffers"] for worker in played), strict=True)
    np.testing.assert_allclose(after[0], np.mean(before, axis=0), rtol=1e-6)
    assert same_on_all(after)
    assert not same_on_all(before)


def test_each_worker_has_its_part_of_the_data(played: Any) -> None:
    assert sorted(value for worker in played for value in worker["data"]) == list(range(8))


# -- without workers ------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [lightning.fabric, lightning_fabric], ids=["lightning", "alone"])
@pytest.mark.parametrize("name", NAMES)
def test_the_names_are_registered(name: str, module: Any) -> None:
    strategy = module.strategies.STRATEGY_REGISTRY.get(name)
    assert strategy.namespace == module.__name__
    type(strategy).register_strategies(module.strategies.STRATEGY_REGISTRY)  # again: nothing happens


@pytest.mark.parametrize(
    ("fabric", "strategy"),
    [
        (Fabric, fabric_alone.SignVoteStrategy),
        (lightning_fabric.Fabric, fabric_of_lightning.SignVoteStrategy),
    ],
    ids=["lightning", "alone"],
)
def test_the_strategy_of_the_other_namespace_is_refused_with_the_remedy(fabric: Any, strategy: Any) -> None:
    with pytest.raises(ValueError, match='use strategy="sign_vote", which picks the right one'):
        fabric(accelerator="cpu", strategy=strategy())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"ties": "coin"}, "ties"), ({"zeros": "drop"}, "zeros"), ({"seed": -1}, "seed")],
)
def test_bad_arguments_are_refused_at_construction(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lightning_signvr.fabric.SignVoteStrategy(**arguments)
