"""``state_dict_type="sharded"``: checkpoints are folders, to which each worker writes its own state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from torch.optim import AdamW, Optimizer

from lightning_signvr import SignVoteStrategy
from lightning_signvr.checkpoint_folders import INDEX, CheckpointFolder
from lightning_signvr.fabric import SignVoteStrategy as FabricStrategy
from lightning_signvr.optimizers import SSVR, EFSignum
from lightning_signvr.sharded_checkpoints import consolidate, load
from tests.strategies.helpers import (
    LR,
    Adversarial,
    Regression,
    batches,
    loader,
    make_trainer,
    parameters_of,
    same_on_all,
    signum,
    state_of,
)
from tests.workers import WorkerError, run_workers

WORKERS, EPOCHS, STEPS_PER_EPOCH = 2, 2, 3
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "Signum": signum,
    "AdamW": lambda parameters: AdamW(parameters, lr=LR),
    "SSVR": lambda parameters: SSVR(parameters, lr=LR),
    "EFSignum": lambda parameters: EFSignum(parameters, lr=LR),  # with a state at each shard's owner
}


def sharded(**options: Any) -> SignVoteStrategy:
    return SignVoteStrategy(state_dict_type="sharded", **options)


class End(NamedTuple):
    parameters: np.ndarray
    states: list[np.ndarray]
    steps: list[int]


def end_of(trainer: L.Trainer, module: L.LightningModule) -> End:
    steps = [vote.step for vote in trainer.strategy.votes]
    return End(
        parameters_of(module),
        [state_of(optimizer) for optimizer in trainer.optimizers if optimizer.state],
        steps,
    )


def fit(rank: int, name: str, folder: str, resume_from: str | None = None, epochs: int = EPOCHS) -> End:
    checkpoint = ModelCheckpoint(folder, filename="{step}", every_n_epochs=1, save_top_k=-1, save_last=True)
    trainer = make_trainer(sharded(), max_epochs=epochs, enable_checkpointing=True, callbacks=[checkpoint])
    module = Regression(OPTIMIZERS[name], seed=rank)
    trainer.fit(module, loader(batches(rank, STEPS_PER_EPOCH)), ckpt_path=resume_from)
    assert trainer.global_step == epochs * STEPS_PER_EPOCH
    return end_of(trainer, module)


def fit_and_resume(rank: int, folder: str) -> dict[str, tuple[End, End]]:
    ends = {}
    for name in OPTIMIZERS:
        ours, again = f"{folder}/{name}", f"{folder}/{name}-again"
        whole = fit(rank, name, ours)
        if name == "Signum":
            fit(rank, name, again, epochs=1)
            resumed = fit(rank, name, again, "last")
        else:
            resumed = fit(rank, name, again, f"{ours}/step={STEPS_PER_EPOCH}.ckpt")
        ends[name] = (whole, resumed)
    return ends


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def runs(folder: Path) -> list[dict[str, tuple[End, End]]]:
    return run_workers(fit_and_resume, WORKERS, str(folder), timeout=120)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_run_equals_the_uninterrupted_one(name: str, runs: Any) -> None:
    for own in runs:
        whole, resumed = own[name]
        np.testing.assert_array_equal(resumed.parameters, whole.parameters)
        np.testing.assert_array_equal(resumed.states, whole.states)
        assert resumed.steps == whole.steps == [EPOCHS * STEPS_PER_EPOCH]
    assert same_on_all([own[name][0].states[0] for own in runs]) == (name == "AdamW")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_worker_writes_its_own_state_alone(name: str, runs: Any, folder: Path) -> None:
    assert sorted(path.name for path in (folder / name).iterdir()) == [
        "last.ckpt",
        "step=3.ckpt",
        "step=6.ckpt",
    ]
    saved = CheckpointFolder(folder / name / "last.ckpt")
    assert len(list(saved.path.iterdir())) == WORKERS + 2
    in_shared = "state" in saved.read(None)["optimizer_states"][0]
    for rank, own in enumerate(runs):
        states = saved.read(rank)
        assert in_shared == (name == "AdamW") == (states == {})  # the same on all workers: once
        if name == "Signum":
            momenta = [state["momentum_buffer"].double().numpy().ravel() for state in states["0"].values()]
            np.testing.assert_array_equal(np.concatenate(momenta), own[name][0].states[0])


def test_weights_in_a_single_process(runs: Any, folder: Path, tmp_path: Path) -> None:
    consolidate(folder / "Signum" / "last.ckpt", tmp_path / "made.ckpt")
    module = Regression.load_from_checkpoint(tmp_path / "made.ckpt", seed=1)
    np.testing.assert_array_equal(parameters_of(module), runs[0]["Signum"][0].parameters)
    module = Regression(seed=1)
    module.load_state_dict(load(folder / "Signum" / "last.ckpt", on_resize="reset")["state_dict"])
    np.testing.assert_array_equal(parameters_of(module), runs[0]["Signum"][0].parameters)
    trainer = L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, strategy="sign_vote"
    )
    module = Regression(seed=1)
    trainer.validate(module, loader(batches(0, 1)), ckpt_path=folder / "Signum" / "last.ckpt", verbose=False)
    np.testing.assert_array_equal(parameters_of(module), runs[0]["Signum"][0].parameters)


# -- files and folders ------------------------------------------------------------------------------


def resume_from_the_other(rank: int, folder: str) -> tuple[End, list[End]]:
    """Steps after a file and after a folder, each read under the other setting and replaced by the other."""
    data, ends = batches(rank, 2 * STEPS_PER_EPOCH), []
    whole = Regression()
    trainer = make_trainer(max_steps=2 * STEPS_PER_EPOCH)
    trainer.fit(whole, loader(data))
    for first, second in (("full", "sharded"), ("sharded", "full")):
        path = f"{folder}/{first}.ckpt"
        start, module = Regression(), Regression(seed=9)
        before = make_trainer(SignVoteStrategy(state_dict_type=first), max_steps=STEPS_PER_EPOCH)
        before.fit(start, loader(data[:STEPS_PER_EPOCH]))
        before.save_checkpoint(path)
        after = make_trainer(SignVoteStrategy(state_dict_type=second), max_epochs=2)
        after.fit(module, loader(data[STEPS_PER_EPOCH:]), ckpt_path=path)
        assert Path(path).is_dir() == (first == "sharded")
        ends.append(end_of(after, module))
        after.save_checkpoint(path)
        assert Path(path).is_dir() == (second == "sharded")
        make_trainer(max_epochs=2).fit(Regression(seed=9), loader(data), ckpt_path=path)
    return end_of(trainer, whole), ends


def test_files_and_folders_are_read_under_both_settings(tmp_path: Path) -> None:
    for whole, ends in run_workers(resume_from_the_other, WORKERS, str(tmp_path)):
        for end in ends:
            np.testing.assert_array_equal(end.parameters, whole.parameters)
            np.testing.assert_array_equal(end.states, whole.states)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full.ckpt", "sharded.ckpt"]


class LogStep(L.Callback):
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        pl_module.log("step_reached", float(trainer.global_step))


def keep(rank: int, folder: str, save_top_k: int, save_last: Any) -> None:
    checkpoint = ModelCheckpoint(
        folder, "{step}", "step_reached", mode="max", save_top_k=save_top_k, save_last=save_last,
        every_n_train_steps=1,
    )  # fmt: skip
    trainer = make_trainer(sharded(), enable_checkpointing=True, callbacks=[LogStep(), checkpoint])
    trainer.fit(Regression(), loader(batches(rank, STEPS_PER_EPOCH)))
    assert checkpoint.best_model_path.endswith("step=3.ckpt")


@pytest.mark.parametrize(
    ("save_top_k", "save_last", "expected"),
    [(1, None, ["step=3.ckpt"]), (2, "link", ["last.ckpt", "step=2.ckpt", "step=3.ckpt"])],
    ids=["best", "linked"],
)
def test_folders_are_removed_and_linked(
    save_top_k: int, save_last: Any, expected: Any, tmp_path: Path
) -> None:
    run_workers(keep, WORKERS, str(tmp_path), save_top_k, save_last)
    assert sorted(path.name for path in tmp_path.iterdir()) == expected
    last = CheckpointFolder(tmp_path / expected[0])
    assert last.path.is_symlink() == (save_last == "link")
    assert last.read(None)["global_step"] == STEPS_PER_EPOCH


def save_weights(rank: int, folder: str) -> None:
    trainer = make_trainer(sharded())
    trainer.fit(Regression(), loader(batches(rank, 1)))
    trainer.save_checkpoint(f"{folder}/weights", weights_only=True)


def test_weights_alone_can_be_saved(tmp_path: Path) -> None:
    run_workers(save_weights, WORKERS, str(tmp_path))
    assert "optimizer_states" not in CheckpointFolder(tmp_path / "weights").read(None)


def train_adversaries(rank: int, folder: str) -> tuple[End, End]:
    ends = []
    for epochs, path in ((1, None), (2, f"{folder}/first")):
        trainer = make_trainer(sharded(), max_epochs=epochs)
        module = Adversarial(seed=rank)
        trainer.fit(module, loader(batches(rank, 4)), ckpt_path=path)
        if path is None:
            trainer.save_checkpoint(f"{folder}/first")
        ends.append(end_of(trainer, module))
    whole = make_trainer(sharded(), max_epochs=2)
    module = Adversarial(seed=rank)
    whole.fit(module, loader(batches(rank, 4)))
    return ends[1], end_of(whole, module)


def test_two_optimizers_one_of_them_torchs_own(tmp_path: Path) -> None:
    for resumed, whole in run_workers(train_adversaries, WORKERS, str(tmp_path)):
        np.testing.assert_array_equal(resumed.parameters, whole.parameters)
        np.testing.assert_array_equal(resumed.states[0], whole.states[0])
        assert resumed.steps == whole.steps
    assert list(CheckpointFolder(tmp_path / "first").read(1)) == ["0"]


# -- another number of workers ----------------------------------------------------------------------


class Start(L.Callback):
    """Keeps the optimizer's state as the resumed run begins with it."""

    state: np.ndarray | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        optimizer = trainer.optimizers[0]
        self.state = state_of(optimizer) if optimizer.state else None
        assert optimizer.param_groups[0]["step"] == STEPS_PER_EPOCH


def save(rank: int, path: str) -> np.ndarray:
    trainer = make_trainer(sharded())
    trainer.fit(Regression(), loader(batches(rank, STEPS_PER_EPOCH)))
    trainer.save_checkpoint(path)
    return state_of(trainer.optimizers[0])


def resume(rank: int, path: str) -> tuple[list[np.ndarray | None], np.ndarray, str]:
    starts, error = [], ""
    for on_resize in ("mean", "reset", "error"):
        start, module = Start(), Regression(seed=9)
        trainer = make_trainer(sharded(on_resize=on_resize), max_epochs=2, callbacks=[start])
        try:
            trainer.fit(module, loader(batches(rank, STEPS_PER_EPOCH)), ckpt_path=path)
        except RuntimeError as caught:
            error = str(caught)
        else:
            starts.append(start.state)
    return starts, parameters_of(module), error


@pytest.mark.parametrize(
    ("before", "after"),
    [(2, 3), pytest.param(3, 2, marks=pytest.mark.slow), pytest.param(4, 1, marks=pytest.mark.slow)],
    ids=["2-3", "3-2", "4-1"],
)
def test_another_number_of_workers(before: int, after: int, tmp_path: Path) -> None:
    states = run_workers(save, before, str(tmp_path / "saved"))
    resumed = run_workers(resume, after, str(tmp_path / "saved"), timeout=120)
    for (mean, reset), _, error in resumed:
        np.testing.assert_array_equal(mean, np.mean(states, axis=0).astype(np.float32))
        assert reset is None
        assert f"states of {before} worker(s), and this run has {after}: resume with {before}" in error
    assert same_on_all(parameters for _, parameters, _ in resumed)


# -- Fabric -----------------------------------------------------------------------------------------


def in_fabric(rank: int, path: str, first: int, last: int, on_resize: Any = "error") -> tuple[Any, Any]:
    strategy = FabricStrategy(state_dict_type="sharded", on_resize=on_resize)
    fabric = L.Fabric(accelerator="cpu", devices=torch.distributed.get_world_size(), strategy=strategy)
    fabric.launch()
    module, adam = Regression(seed=9 if first else rank), torch.nn.Linear(4, 1)
    model, optimizer = fabric.setup(module.net, signum(module.net.parameters()))
    other, foreign = fabric.setup(adam, AdamW(adam.parameters(), lr=LR))
    state: dict[str, Any] = {
        "model": model, "optimizer": optimizer, "other": other, "foreign": foreign, "step": 0
    }  # fmt: skip
    if first:
        remainder = fabric.load(path, {name: state[name] for name in state if name != "step"})
        assert remainder == {"step": first}
    for inputs, targets in batches(rank, last)[first:]:
        for net, steps in ((model, optimizer), (other, foreign)):
            steps.zero_grad()
            fabric.backward((net(inputs) - targets).pow(2).mean())
            steps.step()
    if not first:
        fabric.save(path, {**state, "step": last})
        by_hand = signum(module.net.parameters())
        by_hand.load_state_dict(fabric.load(path)["optimizer"])
        assert np.array_equal(state_of(by_hand), state_of(optimizer.optimizer))
    return parameters_of(module), state_of(optimizer.optimizer)


def fabric_runs(rank: int, folder: str) -> tuple[Any, Any]:
    in_fabric(rank, f"{folder}/saved", 0, 3)
    return in_fabric(rank, f"{folder}/saved", 3, 6), in_fabric(rank, f"{folder}/whole", 0, 6)


def test_fabric(tmp_path: Path) -> None:
    runs = run_workers(fabric_runs, WORKERS, str(tmp_path))
    for resumed, whole in runs:
        np.testing.assert_array_equal(resumed[0], whole[0])
        np.testing.assert_array_equal(resumed[1], whole[1])
    assert not same_on_all(state for (_, state), _ in runs)
    saved = CheckpointFolder(tmp_path / "saved")
    assert [list(saved.read(rank)) for rank in range(WORKERS)] == [["optimizer"]] * WORKERS
    assert "state" in saved.read(None)["foreign"]

    [(_, mean)] = run_workers(in_fabric, 1, str(tmp_path / "whole"), 6, 6, "mean")
    np.testing.assert_array_equal(mean, np.mean([state for _, (_, state) in runs], axis=0).astype(np.float32))
    with pytest.raises(WorkerError, match=r"states of 2 worker\(s\), and this run has 1"):
        run_workers(in_fabric, 1, str(tmp_path / "whole"), 6, 6)


# -- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [SignVoteStrategy, FabricStrategy], ids=["Trainer", "Fabric"])
def test_an_unknown_type_is_refused(strategy: Any) -> None:
    with pytest.raises(ValueError, match="state_dict_type must be one of 'full', 'sharded', got 'split'"):
        strategy(state_dict_type="split")


def test_a_checkpoint_io_is_refused(tmp_path: Path) -> None:
    trainer = L.Trainer(
        strategy=sharded(), accelerator="cpu", devices=1, plugins=[AsyncCheckpointIO()], logger=False
    )
    with pytest.raises(ValueError, match=r"checkpoint_io must be left out .* got AsyncCheckpointIO"):
        trainer.fit(Regression(), loader(batches(0, 1)))


def refused(rank: int, folder: str) -> list[str]:
    messages = []
    trainer = make_trainer(sharded())
    trainer.fit(Regression(), loader(batches(rank, 1)))
    trainer.save_checkpoint(f"{folder}/saved")
    if rank == 1:
        next(Path(folder, "saved").glob("rank_1-*")).write_bytes(b"")
    else:
        Path(folder, "mine").mkdir()
        Path(folder, "mine", "notes.txt").write_text("of the user")
    trainer.strategy.barrier()
    shared = str(next(Path(folder, "saved").glob("shared-*")))
    for path in (f"{folder}/saved", shared, "s3://bucket/saved"):
        try:
            if path.startswith("s3"):
                trainer.save_checkpoint(path)
            else:
                make_trainer(max_epochs=2).fit(Regression(), loader(batches(rank, 1)), ckpt_path=path)
        except (ValueError, RuntimeError) as error:
            messages.append(str(error))
    full = make_trainer()
    full.fit(Regression(), loader(batches(rank, 1)))
    try:
        full.save_checkpoint(f"{folder}/mine")
    except RuntimeError as error:
        messages.append(str(error))
    return messages


def test_what_is_refused(tmp_path: Path) -> None:
    first, second = run_workers(refused, WORKERS, str(tmp_path))
    assert "failed on rank(s) 1" in first[0]
    assert "is damaged or incomplete (0 of" in second[0]
    assert f"mine is a folder without {INDEX}" in first[3]
    assert "failed on rank(s) 0" in second[3]
    for messages in (first, second):
        assert "name the folder itself" in messages[1]
        assert "writes to a disk that all workers share, got s3://bucket/saved" in messages[2]
    assert (tmp_path / "mine" / "notes.txt").exists()
    (tmp_path / "saved" / INDEX).unlink()
    strategy = sharded()
    with pytest.raises(RuntimeError, match=f"is a folder without {INDEX}"):
        strategy.load_checkpoint(tmp_path / "saved")
