"""What is read from event files is what was written, as far as they are whole."""

from __future__ import annotations

import math
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from lightning_signvr.report.events import read_event_file
from tests.report.pages import newest, write_events

POINTS = [(step, 1 / (step + 1)) for step in range(20)]


def _ends_of_records(content: bytes) -> list[int]:
    """From the lengths that stand before each record; 4 + 4 bytes of checksums follow it."""
    ends = [0]
    while ends[-1] < len(content):
        [length] = struct.unpack_from("<Q", content, ends[-1])
        ends.append(ends[-1] + 8 + 4 + length + 4)
    return ends


@pytest.mark.parametrize("new_style", [False, True])
def test_scalars_are_those_that_were_written(tmp_path: Path, new_style: bool) -> None:
    values = [0.1, -3e38, 1e-45, math.inf, math.nan]
    with SummaryWriter(str(tmp_path)) as writer:
        for step, value in enumerate(values):
            writer.add_scalar("some/tag", value, step, new_style=new_style, walltime=100.0 + step)
        writer.add_scalar("other", 7.0, 10**12, walltime=200.0)
    file = read_event_file(newest(tmp_path))
    steps, read = zip(*file.scalars["some/tag"], strict=True)
    assert steps == tuple(range(5))
    np.testing.assert_array_equal(read, np.float32(values).astype(float))
    assert file.scalars["other"] == [(10**12, 7.0)]
    assert file.ended == 200.0
    assert file.problem is None


def test_scalars_are_those_that_tensorboard_reads(tmp_path: Path) -> None:
    path = write_events(tmp_path, {"loss": POINTS, "other": POINTS[::-1]})
    events = EventAccumulator(str(path)).Reload()
    file = read_event_file(path)
    assert set(file.scalars) == set(events.Tags()["scalars"])
    for tag, points in file.scalars.items():
        assert points == [(event.step, event.value) for event in events.Scalars(tag)]


def test_texts_and_settings(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_text("sign_vote/settings", "old")
        writer.add_text("sign_vote/settings", "| workers | 2 |\nümlaut")
        writer.add_histogram("weights", np.arange(5.0))
        writer.add_hparams({"lr": 0.002, "optimizer": "signum", "steps": 300}, {}, run_name=".")
    files = [read_event_file(path) for path in tmp_path.glob("*tfevents*")]
    assert {"sign_vote/settings": "| workers | 2 |\nümlaut"} in [file.texts for file in files]
    assert {"lr": "0.002", "optimizer": "signum", "steps": "300"} in [file.settings for file in files]
    assert not any(file.scalars for file in files)


def test_a_file_cut_at_any_byte_gives_what_is_before(tmp_path: Path) -> None:
    whole = write_events(tmp_path, {"loss": POINTS[:4]})
    content = whole.read_bytes()
    ends, points = _ends_of_records(content), read_event_file(whole).scalars["loss"]
    assert len(points) == 4
    assert ends[-1] == len(content)
    cut = tmp_path / "cut.tfevents"
    for size in range(len(content)):
        cut.write_bytes(content[:size])
        file = read_event_file(cut)
        records = sum(end <= size for end in ends) - 1
        assert file.scalars.get("loss", []) == points[: max(0, records - 1)]  # the first names the version
        if size in ends[1:]:
            assert file.problem is None
        else:
            assert file.problem is not None
            assert "cut.tfevents" in file.problem


def test_a_file_damaged_at_any_byte_gives_what_is_before(tmp_path: Path) -> None:
    whole = write_events(tmp_path, {"loss": POINTS})
    content = whole.read_bytes()
    ends, points = _ends_of_records(content), read_event_file(whole).scalars["loss"]
    damaged = tmp_path / "damaged.tfevents"
    for place in random.Random(0).sample(range(len(content)), 200):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        damaged.write_bytes(changed)
        file = read_event_file(damaged)
        records = sum(end <= place for end in ends) - 1
        assert file.scalars.get("loss", []) == points[: max(0, records - 1)]
        assert file.problem == (
            f"damaged.tfevents is damaged or unfinished: only its first {ends[records]:,} of "
            f"{len(content):,} bytes, {records} events, can be read."
        )


@pytest.mark.parametrize("content", [b"", b"\0", b"no events at all\n" * 50, b"\xff" * 1000])
def test_garbage_gives_nothing_and_says_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "garbage.tfevents"
    path.write_bytes(content)
    file = read_event_file(path)
    assert (file.scalars, file.texts, file.settings, file.started) == ({}, {}, {}, None)
    assert file.problem is not None
    assert file.problem.startswith("garbage.tfevents is ")
