"""The advice is what the predictions say."""

from __future__ import annotations

from lightning_signvr.planner import METHODS, Cluster, Link, Problem, predict
from lightning_signvr.planner.advice import WORTHWHILE, advise, explain_break_even

MATRICES = [(1024, 1024)] * 25


def plan(
    rate: float, compute: float, workers: int = 4, per_node: int = 1, method: str = "Signum"
) -> tuple[Problem, str]:
    problem = Problem(MATRICES, Cluster(workers, Link(rate, 1e-4), per_node), compute, METHODS[method])
    return problem, advise(problem, predict(problem))


def test_slow_link_use_it() -> None:
    problem, advice = plan(125e6, 0.1)
    steps = predict(problem)
    assert steps["bf16"].seconds > WORTHWHILE * steps["vote"].seconds
    assert advice.startswith("Use it: a step would take ")
    assert f"{steps['fp32'].seconds / steps['vote'].seconds:.2g} times as fast" in advice
    assert "largest part is forward and backward" in advice


def test_fast_link_or_long_compute_do_not() -> None:
    for rate, compute in ((125e9, 0.1), (125e6, 60.0)):
        problem, advice = plan(rate, compute)
        steps = predict(problem)
        assert steps["fp32"].seconds < WORTHWHILE * steps["vote"].seconds
        assert advice.startswith("Don't use it")
        assert "There is little to save" in advice


def test_slower_is_said_to_be_slower() -> None:
    _, advice = plan(125e9, 1.0, method="SSVR")
    assert advice.startswith("Don't use it")
    assert "times as long" in advice
    assert "2 gradients per step" in advice


def test_where_16_bits_are_enough_it_says_so() -> None:
    problem, advice = plan(4e7, 4.0)
    steps = predict(problem)
    assert steps["fp32"].seconds > WORTHWHILE * steps["vote"].seconds > steps["bf16"].seconds
    assert advice.startswith("Don't use it")
    assert "bf16 all-reduce takes" in advice


def test_what_dominates_is_named() -> None:
    assert "largest part is the exchange" in plan(1e5, 1e-3)[1]
    assert "largest part is packing, counting and applying signs" in plan(1e9, 1e-3)[1]


def test_powersgd_may_be_faster_still() -> None:
    assert "PowerSGD rank 4 would be faster still" in plan(1e6, 0.1)[1]
    assert "PowerSGD" not in plan(1e9, 0.1)[1]


def test_one_worker() -> None:
    assert plan(125e6, 0.1, workers=1)[1] == "Don't use it for speed: a single worker exchanges nothing."


def test_nodes_as_voters_are_advised() -> None:
    advice = plan(12.5e6, 0.1, workers=16, per_node=8)[1]
    assert 'With voters="node" the vote would take' in advice


def test_break_even_is_explained() -> None:
    assert "link is not used" in explain_break_even(plan(1e9, 0.1, 4, 4)[0], "fp32", "fp32")
    assert "10% faster below" in explain_break_even(plan(1e9, 0.1, method="SSVR")[0], "fp32", "fp32")
    assert "slower even on slow links" in explain_break_even(plan(1e9, 0.1, 512, 256)[0], "fp32", "fp32")
