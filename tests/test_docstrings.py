"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from importlib.util import find_spec

import pytest
import torch

import lightning_signvr

MODULES = [
    module.name
    for module in pkgutil.walk_packages(lightning_signvr.__path__, "lightning_signvr.")
    if find_spec("triton") or "triton_kernels" not in module.name
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    results = doctest.testmod(module, extraglobs={"torch": torch})
    assert results.failed == 0


def test_public_names_have_docstrings() -> None:
    for name in lightning_signvr.__all__:
        item = getattr(lightning_signvr, name)
        assert isinstance(item, str) or (item.__doc__ and len(item.__doc__) > 100), name


def test_some_examples_were_run() -> None:
    finder = doctest.DocTestFinder()
    examples = sum(
        len(test.examples) for name in MODULES for test in finder.find(importlib.import_module(name))
    )
    assert examples > 20
