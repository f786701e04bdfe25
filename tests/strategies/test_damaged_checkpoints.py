"""A Trainer's checkpoint, damaged in any way, is refused with a clear error or loads bit-equal."""

from __future__ import annotations

import random
from pathlib import Path

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_signvr.checkpoint_files import load
from lightning_signvr.optimizers import EFSignum
from lightning_signvr.optimizers.rank_states import own_rank_state
from lightning_signvr.strategies import SignVoteStrategy
from tests.strategies.helpers import LR, Regression, batches, fit, same
from tests.workers import run_workers

WORKERS = 2


def train(rank: int, folder: str) -> None:
    net = nn.Sequential(nn.Linear(4, 500), nn.BatchNorm1d(500), nn.Tanh(), nn.Linear(500, 1))
    checkpoint = ModelCheckpoint(folder, filename="damaged", every_n_train_steps=3)
    module = Regression(lambda parameters: EFSignum(parameters, lr=LR), net=net)
    fit(module, batches(rank, 3), enable_checkpointing=True, callbacks=[checkpoint])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("whole")
    run_workers(train, WORKERS, str(folder))
    return (folder / "damaged.ckpt").read_bytes()


def outcomes(data: bytes, cases: list[bytes], folder: Path) -> dict[str, int]:
    """How often a case was refused, and how often it loaded as it was saved."""
    path = folder / "damaged.ckpt"
    path.write_bytes(data)
    strategy, counts = SignVoteStrategy(), {"refused": 0, "equal": 0}
    expected = strategy.load_checkpoint(path)
    for case in cases:
        path.write_bytes(case)
        try:
            found = strategy.load_checkpoint(path)
        except RuntimeError as error:
            counts["refused"] += f"the checkpoint {path} is damaged or incomplete" in str(error)
        else:
            assert same(found, expected)
            counts["equal"] += 1
    assert sum(counts.values()) == len(cases)
    return counts


def truncated(data: bytes, every: int) -> list[bytes]:
    return [data[:size] for size in range(0, len(data), every)]


def flipped(data: bytes, count: int, seed: int) -> list[bytes]:
    """One to eight bytes changed; a third of the cases in the head or in the directory at the end."""
    draw, cases = random.Random(seed), []
    for _ in range(count):
        case = bytearray(data)
        first, last = draw.choice([(0, len(data)), (0, len(data)), (0, 2000), (len(data) - 4000, len(data))])
        for _ in range(draw.randint(1, 8)):
            case[draw.randrange(first, last)] ^= draw.randint(1, 255)
        cases.append(bytes(case))
    return cases


def test_the_damage_matrix(data: bytes, tmp_path: Path) -> None:
    cuts, flips = truncated(data, 4096), flipped(data, 200, seed=0)
    assert outcomes(data, [data], tmp_path) == {"refused": 0, "equal": 1}
    assert outcomes(data, cuts, tmp_path) == {"refused": len(cuts), "equal": 0}
    assert outcomes(data, flips, tmp_path)["refused"] >= 150  # the rest are in padding


def test_a_trainer_refuses_it(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "damaged.ckpt"
    case = bytearray(data)
    case[len(data) // 2] ^= 1
    path.write_bytes(case)
    trainer = L.Trainer(strategy="sign_vote", accelerator="cpu", devices=1, logger=False)
    with pytest.raises(RuntimeError, match=r"damaged.ckpt is damaged or incomplete"):
        trainer.strategy.load_checkpoint(str(path))


def test_torch_load_and_a_damaged_state(data: bytes, tmp_path: Path) -> None:
    """Who reads the file with torch.load, which looks at no checksums, is told by the optimizer."""
    (tmp_path / "whole.ckpt").write_bytes(data)
    saved = load(tmp_path / "whole.ckpt")["optimizer_states"][0]
    next(iter(saved["rank_states"]["states"][1].values()))["error"].view(-1)[7] += 1
    own_rank_state(saved, 0, WORKERS)
    with pytest.raises(RuntimeError, match="optimizer state of worker 1 is damaged, its checksum differs"):
        own_rank_state(saved, 1, WORKERS)
    with pytest.raises(RuntimeError, match="optimizer state of worker 1 is damaged"):
        own_rank_state(saved, 0, 3, "mean")
