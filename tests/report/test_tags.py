"""Every tag has a place on the page and a sentence that fits it."""

from __future__ import annotations

import pytest

from lightning_signvr.report.tags import Place, chart_tags, reading_of


@pytest.mark.parametrize(
    ("tag", "title", "place"),
    [
        ("sign_vote/agreement", "Sign agreement", Place.CURVE),
        ("sign_vote/agreement/1", "Sign agreement", Place.CURVE),
        ("comm/savings_vs_fp32/0", "Savings", Place.CURVE),
        ("comm/seconds/0", "Seconds of a vote", Place.MORE),
        ("comm/seconds/all_to_all/0", "Seconds of a phase", Place.MORE),
        ("grad_norm/local", "Gradient norm", Place.CURVE),
        ("grad_norm/local_l1", "Gradient norm", Place.MORE),
        ("loss/train", "Loss", Place.RESULT),
        ("train_loss_step", "Loss", Place.RESULT),
        ("valLoss", "Loss", Place.RESULT),
        ("val_acc", "Accuracy", Place.RESULT),
        ("Accuracy/test", "Accuracy", Place.RESULT),
        ("acc", "Accuracy", Place.RESULT),
        ("accelerator_memory", "", Place.MORE),
        ("two\nlines", "", Place.MORE),
        ("lr-Signum", "Learning rate", Place.MORE),
        ("", "", Place.MORE),
    ],
)
def test_how_to_read_a_tag(tag: str, title: str, place: Place) -> None:
    reading = reading_of(tag)
    assert (reading.title, reading.place) == (title, place)
    assert chart_tags([tag], place) == [tag]
    assert chart_tags([tag], *set(Place) - {place}) == []


@pytest.mark.parametrize(
    "tag",
    [
        "sign_vote/agreement/net.0",
        "sign_vote/agreement/net.0/1",
        "sign_vote/agreement/loss_head",
        "grad_norm/layer/net.0",
        "sign_vote/worker_agreement/12",
        "sign_vote/worker_agreement/12/1",
    ],
)
def test_tags_of_tables_have_no_chart(tag: str) -> None:
    assert chart_tags([tag], *Place) == []
