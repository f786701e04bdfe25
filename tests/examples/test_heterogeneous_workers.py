"""The comparison on split labels, as a user would run it."""

from __future__ import annotations

import runpy

import pytest
import torch

from tests.examples.running import ROOT, run_example


@pytest.mark.slow
def test_a_majority_stalls_where_the_others_learn() -> None:
    methods = ["Signum", "SSVRMV", "DVRSign"]
    sizes = ("--steps", "100", "--seeds", "1", "--lr", "1e-2", "--alpha", "0.1")
    header, *lines = run_example("heterogeneous_workers.py", *sizes, "--methods", *methods).splitlines()
    assert header.split() == ["alpha", "method", "lr", "loss", "accuracy", "bits", "gradients"]
    rows = {line.split()[1]: [float(value) for value in line.split()[2:]] for line in lines}
    assert list(rows) == methods
    assert [row[0] for row in rows.values()] == [0.03, 0.03, 0.01]
    loss = {method: row[1] for method, row in rows.items()}
    assert loss["SSVRMV"] < 0.75 * loss["Signum"]
    assert loss["DVRSign"] < 0.75 * loss["Signum"]
    assert all(1.33 < row[3] < 3 for row in rows.values())  # 2 (n - 1) / n bits, and headers
    assert [row[4] for row in rows.values()] == [1, 2, 2]


@pytest.mark.parametrize("alpha", [100.0, 0.1])
def test_shares_follow_alpha(alpha: float) -> None:
    owners = runpy.run_path(str(ROOT / "examples" / "heterogeneous_workers.py"))["owners"]
    labels = torch.arange(10).repeat_interleave(1000)
    of = owners(labels, 3, alpha, 0)
    counts = torch.stack([(of == rank).view(10, 1000).sum(1) for rank in range(3)])
    assert counts.sum().item() == len(labels)
    largest = counts.max(0).values.float().mean().item() / 1000  # share of a class's main owner
    assert largest < 0.45 if alpha > 1 else largest > 0.7
