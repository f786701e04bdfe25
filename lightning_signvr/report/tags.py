"""Which tags are charts, which are tables, and one sentence on how to read each chart."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

LAYER_AGREEMENT = re.compile(r"sign_vote/agreement/(?!\d+$)(.+)")
LAYER_NORM = re.compile(r"grad_norm/layer/(.+)")
WORKER_AGREEMENT = re.compile(r"sign_vote/worker_agreement/(\d+(?:/\d+)?)")
_IN_TABLES = (LAYER_AGREEMENT, LAYER_NORM, WORKER_AGREEMENT)


class Place(IntEnum):
    """Where a tag's chart stands on the page, from top to bottom."""

    RESULT = 0  # its last value is among the headline figures, too
    CURVE = 1
    MORE = 2


class Reading(NamedTuple):
    """How to read the tags of a pattern.

    Attributes:
        place: of their charts.
        pattern: of the tags, less the number of the optimizer that may stand at their end.
        title: of the charts; the tag itself where empty.
        sentence: what the curve says.
    """

    place: Place
    pattern: str
    title: str
    sentence: str

    def matches(self, tag: str) -> bool:
        """Whether this is how to read a tag."""
        return re.fullmatch(rf"(?s:{self.pattern})(/\d+)?", tag) is not None


# The first one that matches counts. Charts of one place come in this order.
_READINGS = [
    Reading(
        Place.CURVE,
        "sign_vote/agreement",
        "Sign agreement",
        "1: all workers voted alike everywhere. Coin tosses give about 0.8 / √(number of workers). "
        "It falls in every run as the gradient shrinks below its noise.",
    ),
    Reading(
        Place.CURVE,
        "comm/bits_per_parameter",
        "Bits per parameter",
        "What a worker sends per parameter in one step. Averaging float32 gradients takes 32 or more.",
    ),
    Reading(
        Place.CURVE,
        "comm/savings_vs_fp32",
        "Savings",
        "How many times as much averaging float32 gradients would send. Higher is better.",
    ),
    Reading(
        Place.CURVE,
        "grad_norm/local",
        "Gradient norm",
        "Length of a worker's gradient. It should settle or fall; spikes and growth mean instability.",
    ),
    Reading(
        Place.CURVE,
        "variance_reduction/variance_ratio",
        "Variance ratio",
        "Noise of what is voted on, divided by the noise of the raw gradient. Below 1, noise is removed.",
    ),
    Reading(
        Place.MORE,
        "variance_reduction/gradient_cosine",
        "Gradient cosine",
        "How alike gradients at two points in a row are. Near 1, variance reduction works; near 0, it harms.",
    ),
    Reading(
        Place.MORE,
        "variance_reduction/(gradient|estimate)_noise",
        "Noise",
        "How much the workers' vectors differ, relative to their size. Lower is better.",
    ),
    Reading(
        Place.MORE,
        "sign_vote/tie_rate",
        "Tie rate",
        "Share of the coordinates in which the votes were tied, so that the tie rule decided.",
    ),
    Reading(
        Place.MORE,
        "sign_vote/abstain_rate",
        "Abstain rate",
        "Share of the votes that were not cast: the direction was exactly zero, or there was none.",
    ),
    Reading(
        Place.MORE,
        "sign_vote/flip_rate",
        "Flip rate",
        "Share of the coordinates that were voted otherwise than a step before. Coin tosses give 0.5.",
    ),
    Reading(
        Place.MORE,
        "sign_vote/clip_fraction",
        "Clip fraction",
        "Share of the coordinates too large for their random sign to be right on average. Lower is better.",
    ),
    Reading(
        Place.MORE,
        "grad_norm/.*",
        "Gradient norm",
        "Another measure of the gradient's size, or that of the estimate that is voted on.",
    ),
    Reading(
        Place.MORE,
        "comm/savings_vs_bf16",
        "Savings",
        "How many times as much averaging bfloat16 gradients would send. Higher is better.",
    ),
    Reading(
        Place.MORE,
        "comm/saved_gb",
        "Saved so far",
        "Gigabytes that averaging float32 gradients would have sent more, since training was started.",
    ),
    Reading(Place.MORE, "comm/bytes_sent", "Bytes sent", "What a worker sends in one step."),
    Reading(Place.MORE, "comm/bytes_received", "Bytes received", "What a worker receives in one step."),
    Reading(
        Place.MORE,
        "comm/seconds",
        "Seconds of a vote",
        "What a step spends on its vote, packing included. Peaks are other work or other traffic.",
    ),
    Reading(
        Place.MORE,
        "comm/seconds/.*",
        "Seconds of a phase",
        "What a part of the vote takes. Waiting for slower workers is in the exchanges.",
    ),
    Reading(
        Place.MORE,
        "comm/share_of_step",
        "Share of a step",
        "Part of a step's time that the vote takes. Low: the link does not hold the training up.",
    ),
    Reading(Place.MORE, "epoch", "Epoch", "How often the training data had been gone through."),
    Reading(Place.MORE, "lr-.+|.*learning_rate.*", "Learning rate", "How far one step moves each parameter."),
    Reading(
        Place.RESULT,
        "(?i:.*loss.*)",
        "Loss",
        "Lower is better. Where it stays level, the model no longer learns.",
    ),
    Reading(
        Place.RESULT,
        "(?i:.*acc(uracy|[^a-z].*|))(/.*)?",
        "Accuracy",
        "Share of the examples that the model gets right. Higher is better.",
    ),
    Reading(Place.MORE, ".*", "", "As the training code logged it."),
]


def reading_of(tag: str) -> Reading:
    """How to read a tag.

    Example:
        >>> reading_of("comm/bits_per_parameter/1").title, reading_of("val_loss").title
        ('Bits per parameter', 'Loss')
    """
    return next(reading for reading in _READINGS if reading.matches(tag))


def chart_tags(tags: Iterable[str], *places: Place) -> list[str]:
    """The tags whose charts stand at some places, in the order of the page; those of tables are left out.

    Example:
        >>> tags = ["comm/seconds", "sign_vote/agreement", "loss/train", "sign_vote/agreement/conv"]
        >>> chart_tags(tags, Place.RESULT, Place.CURVE)
        ['loss/train', 'sign_vote/agreement']
    """
    charts = {tag for tag in tags if not any(pattern.fullmatch(tag) for pattern in _IN_TABLES)}
    readings = {tag: reading_of(tag) for tag in charts}
    return sorted(
        (tag for tag in charts if readings[tag].place in places),
        key=lambda tag: (readings[tag].place, _READINGS.index(readings[tag]), tag),
    )
