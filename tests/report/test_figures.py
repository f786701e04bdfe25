"""Sums over a run's steps and time."""

from __future__ import annotations

import pytest

from lightning_signvr.report.events import EventFile
from lightning_signvr.report.figures import bytes_sent, figures, steps
from lightning_signvr.report.runs import Points, Run, merge


def _run(**scalars: Points) -> Run:
    return Run("run", {tag.replace("__", "/"): points for tag, points in scalars.items()}, {}, {}, 0.0, 1.0)


def test_bytes_are_counted_for_all_steps_that_a_mean_covers() -> None:
    sent, savings = [(4, 10.0), (9, 20.0), (29, 30.0)], [(4, 3.0), (29, 2.0)]
    run = _run(comm__bytes_sent=sent, comm__savings_vs_fp32=savings)
    assert bytes_sent(run) == (5 * 10 + 5 * 20 + 20 * 30, 5 * 10 * 2 + 20 * 30 * 1)


def test_a_run_resumed_in_another_folder_counts_its_own_steps() -> None:
    assert bytes_sent(_run(comm__bytes_sent=[(104, 10.0), (109, 10.0)])) == (100.0, 0.0)


def test_bytes_of_several_optimizers_add_up() -> None:
    scalars = {"comm__bytes_sent__0": [(0, 1.0)], "comm__bytes_sent__1": [(0, 10.0)]}
    savings = {"comm__savings_vs_fp32__0": [(0, 3.0)], "comm__savings_vs_fp32__1": [(0, 2.0)]}
    assert bytes_sent(_run(**scalars, **savings)) == (11.0, 12.0)


def test_steps_are_those_of_the_training_not_of_a_test_after_it() -> None:
    assert steps(_run(loss__train=[(299, 1.0)], accuracy__test=[(300, 1.0)])) == 300
    assert steps(_run(anything=[(17, 1.0)])) == 17


def test_agreement_and_last_results() -> None:
    told = figures(
        _run(sign_vote__agreement=[(0, 0.5), (1, float("nan")), (2, 1.0)], val_acc=[(0, 0.1), (5, 0.9)])
    )
    assert (told["Mean sign agreement"], told["Final val_acc"]) == ("0.75", "0.9")


@pytest.mark.parametrize(
    ("spans", "seconds"),
    [([(0, 5)], 5), ([(0, 5), (7, 9)], 7), ([(0, 5), (3, 9)], 9), ([(0, 9), (3, 5), (6, 12)], 12), ([], 0)],
    ids=["one", "a pause", "overlap", "within", "none"],
)
def test_time_is_that_in_which_events_were_written(spans: list[tuple[int, int]], seconds: int) -> None:
    files = [EventFile(started=float(start), ended=float(end)) for start, end in spans]
    assert merge("run", reversed(files)).seconds == seconds
