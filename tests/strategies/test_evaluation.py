"""validate, test and predict under the strategy."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.strategies.helpers import Regression, batches, loader, make_trainer
from tests.workers import run_workers

ROWS = 12


class _Evaluated(Regression):
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("sum", self.net(batch).sum(), sync_dist=True, reduce_fx="sum")

    test_step = validation_step

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(batch)


def _evaluate(rank: int) -> tuple[float, float, list[float], float]:
    module = _Evaluated(seed=rank)
    trainer = make_trainer(use_distributed_sampler=True)
    trainer.fit(module, loader(batches(rank, 3)))
    rows = DataLoader(torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(0)), batch_size=2)
    [validated] = trainer.validate(module, rows, verbose=False)
    [tested] = trainer.test(module, rows, verbose=False)
    predictions = torch.cat(trainer.predict(module, rows)).flatten().tolist()
    with torch.no_grad():
        expected = module.net(rows.dataset).sum().item()  # type: ignore[call-overload]
    return validated["sum"], tested["sum"], predictions, expected


def test_workers_share_the_evaluation_of_the_trained_model() -> None:
    results = run_workers(_evaluate, 2)
    expected = results[0][-1]
    for validated, tested, predictions, own_expected in results:
        assert own_expected == expected
        assert len(predictions) == ROWS // 2  # its own half
        np.testing.assert_allclose([validated, tested], expected, rtol=1e-5)
    np.testing.assert_allclose(sum(sum(predictions) for _, _, predictions, _ in results), expected, rtol=1e-5)


def _evaluate_untrained(rank: int) -> float:
    rows = DataLoader(torch.ones(ROWS, 4), batch_size=2)
    [validated] = make_trainer().validate(_Evaluated(seed=rank), rows, verbose=False)
    return validated["sum"]


def test_an_untrained_model_is_evaluated_with_the_weights_of_rank_0() -> None:
    with torch.no_grad():
        expected = 2 * _Evaluated(seed=0).net(torch.ones(ROWS, 4)).sum().item()  # each worker sees all rows
    np.testing.assert_allclose(run_workers(_evaluate_untrained, 2), [expected] * 2, rtol=1e-5)
