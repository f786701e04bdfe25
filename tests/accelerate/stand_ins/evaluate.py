"""In the place of the package that would download: the accuracy."""

from __future__ import annotations

from torch import Tensor


class Metric:
    def __init__(self) -> None:
        self.right: list[bool] = []

    def add_batch(self, predictions: Tensor, references: Tensor) -> None:
        self.right += (predictions == references).tolist()

    def compute(self) -> dict[str, float]:
        right, self.right = self.right, []
        return {"accuracy": sum(right) / len(right)}


def load(path: str, name: str) -> Metric:
    assert (path, name) == ("glue", "mrpc")
    return Metric()
