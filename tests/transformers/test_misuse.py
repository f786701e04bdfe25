"""Every misuse is an error that says what to do."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import ParallelismConfig
from torch.optim import LBFGS
from transformers import Trainer

from lightning_signvr import Signum
from lightning_signvr.accelerate import rank_files
from lightning_signvr.transformers import SignVoteTrainer
from tests.transformers.helpers import Normalized, arguments, points


def new_trainer(folder: Path, kind: Any = SignVoteTrainer, **options: Any) -> Any:
    args = arguments(str(folder), max_steps=2, **options)
    signum = (Signum, {"lr": 0.01})
    return kind(Normalized(), args, train_dataset=points(40), optimizer_cls_and_kwargs=signum)


def checkpoint(folder: Path, kind: Any = SignVoteTrainer) -> Path:
    """Of two steps."""
    new_trainer(folder, kind, save_strategy="steps", save_steps=2).train()
    return folder / "checkpoint-2"


SPLITTING = {"deepspeed": {"zero_optimization": {}}, "parallelism_config": ParallelismConfig()}


@pytest.mark.parametrize(("name", "value"), SPLITTING.items(), ids=list(SPLITTING))
def test_a_model_in_parts(name: str, value: Any, tmp_path: Path) -> None:
    args = arguments(str(tmp_path))
    setattr(args, name, value)  # as an argument it needs packages and processes that are not here
    with pytest.raises(
        ValueError, match=rf"TrainingArguments\({name}=...\) splits the model .* leave it out"
    ):
        SignVoteTrainer(Normalized(), args)


def test_fsdp(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"TrainingArguments\(fsdp=...\) splits the model .* leave it out"):
        new_trainer(tmp_path, fsdp=True)


def test_several_gpus_in_one_process(tmp_path: Path) -> None:
    args = arguments(str(tmp_path))
    args._n_gpu = 2  # as where there are two
    with pytest.raises(ValueError, match=r"2 GPUs with DataParallel.*`torchrun --nproc-per-node 2 SCRIPT`"):
        SignVoteTrainer(Normalized(), args)


@pytest.mark.parametrize("name", ["lomo", "adalomo"])
def test_an_optimizer_that_steps_in_backward(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"optim='{name}'.* before any vote: use an optimizer of"):
        SignVoteTrainer(Normalized(), arguments(str(tmp_path), optim=name))


def test_processes_that_would_train_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(str(tmp_path))
    assert args.world_size == 1
    monkeypatch.setenv("WORLD_SIZE", "2")  # `torchrun --nproc-per-node 2` without GPUs
    with pytest.raises(RuntimeError, match=r"train alone, .* pass TrainingArguments\(use_cpu=True\)"):
        SignVoteTrainer(Normalized(), args)


def test_an_optimizer_that_cannot_follow_a_vote(tmp_path: Path) -> None:
    model = Normalized()
    optimizers = (LBFGS(model.parameters()), None)
    trainer = SignVoteTrainer(
        model, arguments(str(tmp_path)), train_dataset=points(40), optimizers=optimizers
    )
    with pytest.raises(TypeError, match="LBFGS"):
        trainer.train()


def test_a_checkpoint_without_votes(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, Trainer)
    with pytest.raises(RuntimeError, match=r"was not saved under sign_vote .* start the optimizer anew"):
        new_trainer(tmp_path).train(resume_from_checkpoint=str(folder))


def test_a_checkpoint_of_another_number_of_workers(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    path = rank_files.path_of(folder, 0)
    torch.save({**torch.load(path, weights_only=True), "world_size": 2}, path)
    with pytest.raises(RuntimeError, match=r"states of 2 worker\(s\), and this run has 1: resume with 2"):
        new_trainer(tmp_path).train(resume_from_checkpoint=str(folder))


def test_transformers_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "lightning_signvr.transformers")
    monkeypatch.setitem(sys.modules, "transformers", None)  # importing it raises ModuleNotFoundError
    with pytest.raises(ImportError, match=r'pip install "lightning-signvr\[transformers\]"'):
        importlib.import_module("lightning_signvr.transformers")
