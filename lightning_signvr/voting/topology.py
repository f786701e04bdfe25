"""Which way votes travel, by the latency and the bandwidth of the link."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.distributed as dist

from lightning_signvr.voting.traffic import Traffic

log = logging.getLogger(__name__)

Route = Literal["one_phase", "two_phase"]
Topology = Literal["auto", "one_phase", "two_phase"]
TOPOLOGIES: Sequence[str] = get_args(Topology)

LARGEST_TO_COPY = 64 * 1024
"""Bytes of a bucket beyond which bytes are spared rather than waiting, whatever the link."""

_SMALL = 64  # bytes; a message that is all latency
_REPEATS = 3


@dataclass(frozen=True)
class Link:
    """What a collective costs: ``latency + bytes sent to others * seconds_per_byte``."""

    latency: float
    seconds_per_byte: float

    def seconds(self, route: Route, size: int, workers: int) -> float:
        """Time of a bucket of ``size`` bytes."""
        if route == "one_phase":
            return self.latency + (workers - 1) * size * self.seconds_per_byte
        return 2 * self.latency + 2 * (workers - 1) / workers * size * self.seconds_per_byte

    def faster_route(self, size: int, workers: int) -> Route:
        """The one that takes less time for a bucket of ``size`` bytes; two phases where it is the same."""
        one, two = (self.seconds(route, size, workers) for route in ("one_phase", "two_phase"))
        route: Route = "one_phase" if one < two else "two_phase"
        log.info(
            "sign vote over a link of %.3g ms latency and %.3g Mbit/s: a bucket of %d bytes takes %.3g ms in "
            "one phase and %.3g ms in two, so it takes %s",
            1e3 * self.latency, 8e-6 / self.seconds_per_byte, size, 1e3 * one, 1e3 * two, route,
        )  # fmt: skip
        return route


def choose_route(size: int, group: dist.ProcessGroup | None, device: torch.device, traffic: Traffic) -> Route:
    """How buckets of ``size`` bytes travel; the same answer on all ranks, which must all ask."""
    workers = dist.get_world_size(group)
    if workers == 2:
        return "one_phase"  # as many bytes as two phases send, and half the waiting
    if size > LARGEST_TO_COPY:
        return "two_phase"
    return measure_link(max(size, 2 * _SMALL), group, device, traffic).faster_route(size, workers)


def measure_link(size: int, group: dist.ProcessGroup | None, device: torch.device, traffic: Traffic) -> Link:
    """Time some collectives of up to ``size`` bytes; the same answer on all ranks, which must all call it."""
    small, large = (_seconds(number, group, device, traffic) for number in (_SMALL, size))
    workers = dist.get_world_size(group)
    mine = torch.tensor([small, large], dtype=torch.float64, device=device)
    everyones = mine.new_empty(workers, 2)
    traffic.all_gather(everyones, mine, group).wait()
    small, large = everyones.max(0).values.tolist()
    return Link(small, max(large - small, 1e-9) / ((workers - 1) * (size - _SMALL)))


def _seconds(size: int, group: dist.ProcessGroup | None, device: torch.device, traffic: Traffic) -> float:
    """Median time in which everyone sends ``size`` bytes to everyone."""
    workers = dist.get_world_size(group)
    sent = torch.zeros(size, dtype=torch.uint8, device=device)
    received = sent.new_empty(workers, size)
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        traffic.all_gather(received, sent, group).wait()
        received[0, 0].item()  # a device's collective runs beside the host
        times.append(time.perf_counter() - started)
    return statistics.median(times)
