"""Time the GPU kernels beside a copy on the device, and whole steps beside torch's optimizers.

``python benchmarks/gpu.py --output benchmarks/results/gpu.md``

Needs a CUDA GPU with 40 GiB of memory for the larger model (``--models small`` does with 6 GiB) and takes
some minutes. Everything is timed with events on the device. (The file is not called cuda.py, since torch
imports a module of that name.)
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from math import prod
from pathlib import Path

import torch
from timing import Operation, publish, ratios, take_turns, times
from torch import Tensor, nn

import lightning_signvr
from lightning_signvr.optimizers import SSVR, Signum
from lightning_signvr.signs import (
    MovingAverage,
    Recipe,
    Recursive,
    add_signs_all_,
    dispatch,
    majority,
    pack_all,
    packed_size,
    random_bytes,
)

LR, DECAY = 1e-4, 0.01
LEAST_BANDWIDTH = 0.8  # of the copy's
FUSED = "AdamW(fused=True)"
# layers, width, vocabulary, positions
MODELS = {"small": (12, 768, 50257, 1024), "large": (24, 2048, 50257, 1024)}


def transformer_shapes(layers: int, width: int, vocabulary: int, positions: int) -> list[tuple[int, ...]]:
    """Shapes of a GPT-2's parameters, the output layer tied to the embedding."""
    block = [(width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,)]
    block += [(width,), (width,), (4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    return [(vocabulary, width), (positions, width), *(block * layers), (width,), (width,)]


@dataclass
class OnDevice(Operation):
    """Timed from its first to its last kernel; ``moved`` is how many bytes it reads and writes at least."""

    moved: float = 0

    def time_once(self) -> None:
        self.prepare()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        self.run()
        stop.record()
        stop.synchronize()
        self.milliseconds.append(start.elapsed_time(stop))

    @property
    def bandwidth(self) -> float:
        """GB per second."""
        return self.moved / self.median / 1e6


# -- kernels --------------------------------------------------------------------------------------


def random(numel: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(numel, device=device, dtype=dtype)


def kernels(elements: int, device: torch.device) -> list[OnDevice]:
    """Each kernel on one tensor that does not fit into the cache."""
    size = packed_size(elements)
    values, state, last = (random(elements, device) for _ in range(3))
    short = values.to(torch.bfloat16)
    target, short_target, other = values.clone(), short.clone(), torch.empty_like(values)
    negative, absent = torch.empty(2, size, dtype=torch.uint8, device=device)
    found = torch.zeros(1, dtype=torch.int32, device=device)
    votes = torch.randint(0, 256, (8, size), dtype=torch.uint8, device=device)
    zeros = votes[0] & votes[1] & votes[2]

    def pack(direction: Tensor | Recipe) -> Callable[[], object]:
        return lambda: pack_all([direction], negative, [0], absent, found)

    def apply(
        to: Tensor, undecided: Tensor | None = None, copy: Tensor | None = None
    ) -> Callable[[], object]:
        copies = None if copy is None else [copy]
        return lambda: add_signs_all_(
            [to], votes[0], [0], -LR, zeros=undecided, decay=1 - LR * DECAY, copies=copies
        )

    def one(name: str, run: Callable[[], object], bytes_each: float) -> OnDevice:
        return OnDevice(name, run, moved=bytes_each * elements)

    bit = 1 / 8
    return [
        one("copy", lambda: other.copy_(values), 8),
        one("pack float32", pack(values), 4 + 2 * bit),
        one("pack bfloat16", pack(short), 2 + 2 * bit),
        one("average and pack", pack(MovingAverage(state, values, 0.9, 0.1)), 12 + 2 * bit),
        one("average and pack, bfloat16", pack(MovingAverage(state, short, 0.9, 0.1)), 10 + 2 * bit),
        one("STORM and pack", pack(Recursive(state, values, 0.9, last)), 16 + 2 * bit),
        one("apply float32", apply(target), 8 + bit),
        one("apply float32, some undecided", apply(target, zeros), 8 + 2 * bit),
        one("apply float32, keep the old", apply(target, None, other), 12 + bit),
        one("apply bfloat16", apply(short_target), 4 + bit),
        one("tally of 2", lambda: majority(votes[:2]), 4 * bit),
        one("tally of 8", lambda: majority(votes), 10 * bit),
        one("tally of 8 with abstentions", lambda: majority(votes, votes), 19 * bit),
        one("coins", lambda: random_bytes(0, 0, 0, 0, size, device), bit),
    ]


def kernels_report(elements: int, timed: Sequence[OnDevice]) -> list[str]:
    copy = timed[0].bandwidth
    lines = [f"## Kernels on {elements / 1e6:g} M elements", ""]
    lines += ["| kernel | median ms | min to max ms | GB/s | of the copy's | aim | met |"]
    lines += ["|---|---:|---:|---:|---:|---:|---|"]
    for each in timed:
        share, aim = each.bandwidth / copy, ""
        if each.name.startswith(("pack", "average", "STORM", "apply")):
            aim = f"{LEAST_BANDWIDTH:.0%} | {'yes' if share >= LEAST_BANDWIDTH else 'no'}"
        lines.append(
            f"| {each.name} | {each.median:.3f} | {min(each.milliseconds):.3f} to "
            f"{max(each.milliseconds):.3f} | {each.bandwidth:.0f} | {share:.0%} | {aim or ' | '} |"
        )
    return [*lines, ""]


# -- steps ----------------------------------------------------------------------------------------


def steps(
    shapes: Sequence[tuple[int, ...]], device: torch.device
) -> list[tuple[str, Callable[[], OnDevice]]]:
    """What makes each step, so that one optimizer's state is in memory at a time."""

    def tensors() -> list[Tensor]:
        return [torch.randn(shape, device=device) for shape in shapes]

    def parameters() -> list[nn.Parameter]:
        made = [nn.Parameter(tensor) for tensor in tensors()]
        for parameter, gradient in zip(made, tensors(), strict=True):
            parameter.grad = gradient
        return made

    def of(name: str, make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> tuple[str, Callable]:
        return name, lambda: OnDevice(name, make(parameters()).step)

    def ssvr() -> OnDevice:
        optimizer, others = SSVR(parameters(), LR, weight_decay=DECAY), tensors()

        def give_second_gradients() -> None:
            with optimizer.at_previous_iterate():
                for parameter, other in zip(optimizer.param_groups[0]["params"], others, strict=True):
                    parameter.grad = other

        return OnDevice("SSVR", optimizer.step, give_second_gradients)

    def only_kernels(name: str, storm: bool) -> OnDevice:
        """The kernels of a lone worker's step: what the step takes at least."""
        targets, gradients, states = tensors(), tensors(), tensors()
        others, copies = (tensors(), tensors()) if storm else (gradients, None)
        offsets = [0]
        for target in targets:
            offsets.append(offsets[-1] + packed_size(target.numel()))
        negative, absent = torch.empty(2, offsets.pop(), dtype=torch.uint8, device=device)
        found = torch.zeros(1, dtype=torch.int32, device=device)

        def run() -> None:
            recipes: list[Recipe] = [
                Recursive(state, gradient, 0.9, other) if storm else MovingAverage(state, gradient, 0.9, 0.1)
                for state, gradient, other in zip(states, gradients, others, strict=True)
            ]
            found.zero_()
            pack_all(recipes, negative, offsets, absent, found)
            undecided = absent if found.item() else None
            decay = 1 - LR * DECAY
            add_signs_all_(targets, negative, offsets, -LR, zeros=undecided, decay=decay, copies=copies)

        return OnDevice(name, run)

    return [
        of("SGD(foreach=True)", lambda p: torch.optim.SGD(p, LR, momentum=0.9, foreach=True)),
        of("SGD(fused=True)", lambda p: torch.optim.SGD(p, LR, momentum=0.9, fused=True)),
        of(FUSED, lambda p: torch.optim.AdamW(p, LR, weight_decay=DECAY, fused=True)),
        of("Signum", lambda p: Signum(p, LR, weight_decay=DECAY)),
        ("Signum, kernels alone", lambda: only_kernels("Signum, kernels alone", storm=False)),
        ("SSVR", ssvr),
        ("SSVR, kernels alone", lambda: only_kernels("SSVR, kernels alone", storm=True)),
    ]


def steps_report(shapes: Sequence[tuple[int, ...]], timed: Sequence[OnDevice]) -> list[str]:
    count = sum(map(prod, shapes))
    aims = [("Signum", FUSED, 1.0), ("Signum, kernels alone", FUSED, 1.0)]
    lines = [f"## A step on {count / 1e6:.0f} M float32 parameters in {len(shapes)} tensors, one worker", ""]
    return [*lines, *times(timed), "", *ratios(timed, aims), ""]


def free() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=2**28, help="of the kernels' tensor; %(default)s")
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="markdown file to write, beside printing it")
    arguments = parser.parse_args()
    if arguments.elements < 1 or arguments.repeats < 1:
        parser.error("--elements and --repeats must be at least 1")
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py: torch finds no CUDA GPU here; nothing was measured")
        return 2

    device = torch.device("cuda", torch.cuda.current_device())
    ran = dispatch.kernels_of(device).__name__.rpartition(".")[2]
    lines = [
        "# GPU kernels",
        "",
        f"{date.today()}, {torch.cuda.get_device_name(device)}, torch {torch.__version__}, kernels: {ran}, "
        f"lightning-signvr {lightning_signvr.__version__}; {arguments.repeats} repeats, timed with "
        "events on the device.",
        "",
    ]
    torch.manual_seed(0)
    timed = kernels(arguments.elements, device)
    take_turns(timed, arguments.repeats)
    lines += kernels_report(arguments.elements, timed)
    del timed
    free()
    for name in arguments.models:
        shapes = transformer_shapes(*MODELS[name])
        done = []
        for label, make in steps(shapes, device):
            operation = make()
            take_turns([operation], arguments.repeats)  # alone: the states of all would not fit
            print(f"{label}: {statistics.median(operation.milliseconds):.3f} ms", file=sys.stderr)
            done.append(OnDevice(label, lambda: None, milliseconds=operation.milliseconds))
            del operation
            free()
        lines += steps_report(shapes, done)
    text = "\n".join(lines)
    publish(text, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
