"""What one TensorBoard event file holds, as far as it can be read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorboard.backend.event_processing.event_file_loader import (  # type: ignore[import-untyped]
    RawEventFileLoader,
)
from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # type: ignore[import-untyped]
from tensorboard.util.tensor_util import make_ndarray  # type: ignore[import-untyped]

# Around each record of an event file: its length (8 bytes), the length's checksum and its own (4 each).
_FRAME_BYTES = 16


@dataclass
class EventFile:
    """Contents of an event file.

    Attributes:
        scalars: of each tag, the pairs of step and value in the order in which they were written.
        texts: of each tag, the text that was written last.
        settings: hyper-parameters.
        started: seconds since 1970 of the first event; ``None`` where there is no event.
        ended: the same of the last event.
        problem: what could not be read, in a sentence; ``None`` where everything could.
    """

    scalars: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    started: float | None = None
    ended: float | None = None
    problem: str | None = None


def read_event_file(path: Path) -> EventFile:
    """Read an event file up to its end or to the first record that is damaged or unfinished.

    Args:
        path: of the file.

    Returns:
        What could be read; its ``problem`` tells what could not. Nothing is raised.

    Example:
        >>> read_event_file(Path("absent.tfevents")).problem
        'absent.tfevents cannot be read: No such file or directory.'
    """
    file = EventFile()
    plugins: dict[str, str] = {}
    events = bytes_read = 0
    try:
        size = path.stat().st_size
        for record in RawEventFileLoader(str(path)).Load():  # ends at a damaged record without a word
            _add(file, plugins, Event.FromString(record))
            events += 1
            bytes_read += _FRAME_BYTES + len(record)
    except OSError as error:
        file.problem = f"{path.name} cannot be read: {error.strerror or error}."
        return file
    except (DecodeError, ValueError, TypeError):
        pass  # a record that makes no sense, though its checksum is right: what follows is not trusted
    if bytes_read < size:
        file.problem = (
            f"{path.name} is damaged or unfinished: only its first {bytes_read:,} of {size:,} bytes, "
            f"{events:,} events, can be read."
        )
    elif not events:
        file.problem = f"{path.name} is empty."
    return file


def _add(file: EventFile, plugins: dict[str, str], event: Any) -> None:
    if file.started is None:
        file.started = event.wall_time
    file.ended = event.wall_time
    for value in event.summary.value:
        # only a tag's first value needs to name its plugin
        plugin = plugins.setdefault(value.tag, value.metadata.plugin_data.plugin_name)
        if value.HasField("simple_value"):
            file.scalars.setdefault(value.tag, []).append((event.step, value.simple_value))
        elif plugin == "scalars" and value.HasField("tensor"):
            number = float(make_ndarray(value.tensor).item())
            file.scalars.setdefault(value.tag, []).append((event.step, number))
        elif plugin == "text" and value.HasField("tensor"):
            texts = make_ndarray(value.tensor).ravel()
            tag = value.tag.removesuffix("/text_summary")
            file.texts[tag] = "\n".join(text.decode(errors="replace") for text in texts)
        elif plugin == "hparams":
            started = HParamsPluginData.FromString(value.metadata.plugin_data.content).session_start_info
            file.settings.update({name: _plain(setting) for name, setting in started.hparams.items()})


def _plain(setting: Any) -> str:
    """Text of a protobuf value."""
    kind = setting.WhichOneof("kind")
    value = getattr(setting, kind) if kind else ""
    return f"{value:.10g}" if isinstance(value, float) else str(value)
