"""In the place of the package that would download: pairs of sentences, some with the same words."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

WORDS = [f"w{number}" for number in range(40)]
SIZES = {"train": 96, "validation": 48}


class Dataset(list[dict[str, Any]]):
    """Rows."""

    def map(self, function: Callable[..., dict[str, Any]], remove_columns: list[str], **_: Any) -> Dataset:
        columns = {name: [row[name] for row in self] for name in self[0]}
        columns = {**columns, **function(columns)}
        kept = [name for name in columns if name not in remove_columns]
        return Dataset({name: columns[name][index] for name in kept} for index in range(len(self)))

    def rename_column(self, old: str, new: str) -> Dataset:
        return Dataset({new if name == old else name: value for name, value in row.items()} for row in self)


class DatasetDict(dict[str, Dataset]):
    """By split."""

    def map(self, *args: Any, **kwargs: Any) -> DatasetDict:
        return DatasetDict({split: rows.map(*args, **kwargs) for split, rows in self.items()})

    def rename_column(self, old: str, new: str) -> DatasetDict:
        return DatasetDict({split: rows.rename_column(old, new) for split, rows in self.items()})


def load_dataset(path: str, name: str) -> DatasetDict:
    assert (path, name) == ("nyu-mll/glue", "mrpc")
    source = random.Random(0)
    return DatasetDict({split: Dataset(_pair(source, i) for i in range(n)) for split, n in SIZES.items()})


def _pair(source: random.Random, index: int) -> dict[str, Any]:
    first = source.sample(WORDS, 6)
    second = source.sample(first, 6) if index % 2 else source.sample(WORDS, 6)
    return {"idx": index, "sentence1": " ".join(first), "sentence2": " ".join(second), "label": index % 2}
