"""Parameters that get no gradient, on one worker or on all."""

from __future__ import annotations

import numpy as np
import pytest
from torch import Tensor, nn

from lightning_signvr import Signum
from tests.strategies.helpers import LR, Batch, Regression, batches, fit, flat, same_on_all
from tests.workers import run_workers

STEPS = 5


class _Branching(Regression):
    """A head per worker, one that nobody uses, and an embedding of which each worker sees some rows."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)
        self.heads = nn.ModuleList(nn.Linear(3, 1) for _ in range(3))
        self.rows = nn.Embedding(4, 3)

    def configure_optimizers(self) -> Signum:
        heads = {"params": self.heads.parameters(), "weight_decay": 0.1}
        others = {"params": [*self.net.parameters(), *self.rows.parameters()]}
        return Signum([heads, others], lr=LR)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs, targets = batch
        row = self.rows(self.rows.weight.new_tensor(self.global_rank).long())
        return (self.heads[self.global_rank](self.net(inputs) + row) - targets).pow(2).mean()


def _fit(rank: int) -> dict[str, np.ndarray]:
    module = _Branching()
    fit(module, batches(rank, STEPS))
    heads = {f"head {number}": flat(head.parameters()) for number, head in enumerate(module.heads)}
    rows = {f"row {number}": flat([row]) for number, row in enumerate(module.rows.weight)}
    return {"shared": flat(module.net.parameters()), **heads, **rows}


@pytest.fixture(scope="module")
def trained() -> list[dict[str, np.ndarray]]:
    return run_workers(_fit, 2)


@pytest.fixture(scope="module")
def moved(trained: list[dict[str, np.ndarray]]) -> dict[str, bool]:
    module = _Branching()
    start = [flat(module.net.parameters()), *(flat(h.parameters()) for h in module.heads)]
    start += [flat([row]) for row in module.rows.weight]
    return {
        name: not np.array_equal(before, after)
        for before, (name, after) in zip(start, trained[0].items(), strict=True)
    }


def test_replicas_stay_equal(trained: list[dict[str, np.ndarray]]) -> None:
    for name in trained[0]:
        assert same_on_all([own[name] for own in trained]), name


def test_what_only_one_worker_uses_moves_as_it_says(moved: dict[str, bool]) -> None:
    assert moved["shared"]
    assert moved["head 0"]
    assert moved["head 1"]


def test_what_nobody_uses_does_not_even_decay(moved: dict[str, bool]) -> None:
    assert not moved["head 2"]


def test_rows_of_an_embedding_move_only_where_used(moved: dict[str, bool]) -> None:
    assert [moved[f"row {number}"] for number in range(4)] == [True, True, False, False]
