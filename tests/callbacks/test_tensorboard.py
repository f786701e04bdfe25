"""The heat map that needs matplotlib, which is optional."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from lightning_signvr.callbacks.tensorboard import HeatMap


def test_a_heat_map_is_a_picture_of_all_layers(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    heat_map = HeatMap("layers")
    for step in range(1200):  # more than are kept
        heat_map.add(step, {"first": step / 1200, "second": 0.5})
    writer = SummaryWriter(tmp_path)
    heat_map.write(writer)
    writer.close()
    [event] = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload().Images("layers")
    assert 1100 < event.step < 1200
    picture = image.open(io.BytesIO(event.encoded_image_string)).convert("RGB")
    left, right = (picture.getpixel((int(picture.width * x), picture.height // 3)) for x in (0.2, 0.7))
    assert left != right  # the first layer changes over time


def test_one_step_is_no_picture(tmp_path: Path) -> None:
    heat_map = HeatMap("layers")
    heat_map.add(0, {"first": 1.0})
    writer = SummaryWriter(tmp_path)
    heat_map.write(writer)
    writer.close()
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["images"] == []
