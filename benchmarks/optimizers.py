"""Time the optimizers' steps on one CPU thread, beside torch's own, without any communication.

``python benchmarks/optimizers.py --output benchmarks/results/optimizers.md``

The parameters have the shapes of a ResNet-50. The optimizers take turns (round-robin), so that a busy
machine slows all of them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from timing import Operation, heading, ratios, run_cli, times
from torch import Tensor, nn

from lightning_signvr.optimizers import SSVR, AnchoredOptimizer, SignSGD, Signum
from lightning_signvr.optimizers.lion import Lion
from lightning_signvr.optimizers.marslion import MARSLion

LR, DECAY = 1e-4, 0.01
FUSED = "AdamW(fused=True)"
SSVR_ALONE, SSVR_SWAP = "SSVR, step() alone", "SSVR, at_previous_iterate() and step()"
# operation, what it is compared with, largest ratio aimed at
AIMS = (("Signum", FUSED, 1.0), (SSVR_ALONE, FUSED, 1.5), (SSVR_SWAP, FUSED, 1.5))


def resnet50_shapes(width: int) -> list[tuple[int, ...]]:
    """Shapes of the 161 parameters: convolutions, pairs of vectors for BatchNorm, the last layer."""

    def convolution(outputs: int, inputs: int, size: int) -> list[tuple[int, ...]]:
        return [(outputs, inputs, size, size), (outputs,), (outputs,)]

    shapes, inputs = convolution(width, 3, 7), width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner, outputs = width * 2**stage, 4 * width * 2**stage
        for block in range(blocks):
            shapes += convolution(inner, inputs, 1) + convolution(inner, inner, 3)
            shapes += convolution(outputs, inner, 1)
            if block == 0:
                shapes += convolution(outputs, inputs, 1)
            inputs = outputs
    return [*shapes, (1000, inputs), (1000,)]


@dataclass
class Step(Operation):
    """An optimizer's step; ``optimizer`` tells its state."""

    optimizer: torch.optim.Optimizer | None = None


def operations(width: int) -> Sequence[Operation]:
    """A step of each optimizer, on its own parameters and the same gradients."""
    generator = torch.Generator().manual_seed(0)
    shapes = resnet50_shapes(width)
    values, gradients, others = (
        [torch.randn(shape, generator=generator) for shape in shapes] for _ in range(3)
    )

    def parameters() -> list[nn.Parameter]:
        copies = [nn.Parameter(value.clone()) for value in values]
        for parameter, gradient in zip(copies, gradients, strict=True):
            parameter.grad = gradient
        return copies

    def step(name: str, make: Callable[[Sequence[Tensor]], torch.optim.Optimizer]) -> Step:
        optimizer = make(parameters())
        return Step(name, optimizer.step, optimizer=optimizer)

    def give_second_gradients(optimizer: AnchoredOptimizer) -> None:
        with optimizer.at_previous_iterate():
            for group in optimizer.param_groups:
                for parameter, gradient in zip(group["params"], others, strict=True):
                    parameter.grad = gradient

    ssvr = SSVR(parameters(), LR, weight_decay=DECAY)

    def swap_and_step() -> None:
        give_second_gradients(ssvr)
        ssvr.step()

    return [
        step("SGD(momentum=0.9)", lambda p: torch.optim.SGD(p, LR, momentum=0.9)),
        step("AdamW()", lambda p: torch.optim.AdamW(p, LR, weight_decay=DECAY)),
        step("AdamW(foreach=True)", lambda p: torch.optim.AdamW(p, LR, weight_decay=DECAY, foreach=True)),
        step(FUSED, lambda p: torch.optim.AdamW(p, LR, weight_decay=DECAY, fused=True)),
        step("SignSGD", lambda p: SignSGD(p, LR, weight_decay=DECAY)),
        step("Signum", lambda p: Signum(p, LR, weight_decay=DECAY)),
        step("Lion", lambda p: Lion(p, LR, weight_decay=DECAY)),
        step(
            'MARSLion(previous="last_batch")',
            lambda p: MARSLion(p, LR, previous="last_batch", weight_decay=DECAY),
        ),
        Step(SSVR_ALONE, ssvr.step, lambda: give_second_gradients(ssvr), optimizer=ssvr),
        Step(SSVR_SWAP, swap_and_step, optimizer=ssvr),
    ]


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors in an optimizer's state."""
    states = optimizer.state_dict()["state"].values()
    return sum(value.nbytes for state in states for value in state.values() if isinstance(value, Tensor))


def report(width: int, repeats: int, timed: Sequence[Operation]) -> str:
    """The measurements as markdown."""
    shapes = resnet50_shapes(width)
    count = sum(map(prod, shapes))
    title = f"Optimizer steps, {count / 1e6:.1f} M float32 in {len(shapes)} tensors, one thread, one process"
    lines = [*heading(title, repeats), *times(timed), "", *ratios(timed, AIMS), ""]
    lines += ["| optimizer | state, bytes per parameter |", "|---|---:|"]
    for operation in timed:
        if isinstance(operation, Step) and operation.optimizer and operation.name != SSVR_SWAP:
            lines.append(
                f"| {operation.name.partition(',')[0]} | {state_bytes(operation.optimizer) / count:.2f} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_cli(__doc__.splitlines()[0], ("width", 64), operations, report)
