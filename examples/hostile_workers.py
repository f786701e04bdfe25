"""Hostile workers: what a majority vote of signs survives, and a mean of gradients does not.

    python examples/hostile_workers.py --plot hostile.png

trains a small network on scikit-learn's digits with seven worker processes, of which up to three, the
largest minority, are hostile. Each kind of attack runs against Signum's majority vote and against AdamW on
the mean of the gradients, which is what DDP computes. Hostile workers run the library as it is; they lie
about numbers:

    flip      the negative of their own momentum
    random    fresh Gaussian noise in each step
    constant  the same direction in each step
    ties      they know the honest workers' signs, and vote or abstain so that as much as can be is tied
    against   they know the honest workers' signs, and all vote against their majority
    labels    not hostile, but broken: every label is one too high

All but the last send ten times the magnitude of their own momentum (--magnitude), which matters to a mean
alone.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_signvr.optimizers import SignSGD, Signum

ATTACKS = ("flip", "random", "constant", "ties", "against", "labels")
RULES = ("vote", "mean")
MOMENTUM = 0.9
POINTS = 20
"""Of a curve."""


@cache
def load() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images as rows of numbers in [0, 1], their labels, and the same for the test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    split = train_test_split(digits.data / 16, digits.target, test_size=360, random_state=0)
    images, test_images, labels, test_labels = map(torch.tensor, split)
    return images.float(), labels, test_images.float(), test_labels


def forged(
    attack: str, momentum: Tensor, honest: Tensor, place: int, liars: int, random: torch.Generator
) -> Tensor:
    """What a hostile worker sends, about as long as its own momentum.

    Args:
        attack: one of ``ATTACKS``.
        momentum: its own.
        honest: the sum of the honest workers' signs, which colluders know.
        place: its number among the hostile workers.
        liars: how many there are.
        random: its own generator.
    """
    typical = momentum.square().mean().sqrt()
    if attack == "flip":
        return -momentum
    if attack == "random":
        return typical * torch.randn(momentum.shape, generator=random)
    if attack == "constant":
        return typical * torch.ones_like(momentum)
    if attack == "ties":  # as many as the margin vote against it, or all where that is not enough
        return -typical * honest.sign() * (place < honest.abs())
    if attack == "against":
        return -typical * honest.sign()
    if attack == "labels":
        return momentum
    raise ValueError(f"attack must be one of {', '.join(ATTACKS)}, got {attack!r}")


def train(rule: str, attack: str, liars: int, seed: int, options: argparse.Namespace) -> list[float]:
    """Train once, as one of the workers; test accuracies from start to end, the same on all of them."""
    rank, workers = dist.get_rank(), dist.get_world_size()
    images, labels, test_images, test_labels = load()
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    place = rank - (workers - liars)  # the last ones are hostile
    if place >= 0 and attack == "labels":
        labels = (labels + 1) % 10
    optimizer: torch.optim.Optimizer
    if rule == "mean":
        optimizer = torch.optim.AdamW(model.parameters(), options.lr, weight_decay=0.0)
    elif place >= 0:  # votes with the sign of what it made up, no average of it
        optimizer = SignSGD(model.parameters(), options.lr)
    else:
        optimizer = Signum(model.parameters(), options.lr, momentum=MOMENTUM)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    draw = torch.Generator().manual_seed(1000 * seed + rank)
    parameters = list(model.parameters())
    momentum = torch.zeros(sum(parameter.numel() for parameter in parameters))
    accuracies: list[float] = []
    for step in range(options.steps + 1):
        if step * POINTS // options.steps == len(accuracies):
            with torch.no_grad():
                accuracies.append((model(test_images).argmax(1) == test_labels).float().mean().item())
        if step == options.steps:
            return accuracies
        batch = torch.randint(len(images), (options.batch_size,), generator=draw)
        optimizer.zero_grad()
        cross_entropy(model(images[batch]), labels[batch]).backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in parameters])
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
        honest = torch.zeros_like(momentum)
        if attack in ("ties", "against") and liars:  # the collusion is no part of the training
            honest = momentum.sign() if place < 0 else honest
            dist.all_reduce(honest)
        if place >= 0:
            gradient = forged(attack, momentum, honest, place, liars, draw)
            gradient = gradient if attack == "labels" else options.magnitude * gradient
        if rule == "mean":
            dist.all_reduce(gradient)
            gradient = gradient / workers
        for parameter, part in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)
        optimizer.step()
        schedule.step()
    return accuracies


def work(rank: int, store: str, options: argparse.Namespace) -> None:
    """One of the workers; the first prints."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=options.workers)
    show: Callable[..., None] = print if rank == 0 else lambda *_, **__: None
    show(f"{'attack':10}{'hostile':>7}{'vote':>8}{'mean':>8}", flush=True)
    curves: dict[tuple[str, int, str], list[float]] = {}
    for attack in ("none", *options.attacks):
        for liars in [0] if attack == "none" else [count for count in options.hostile if count]:
            for rule in RULES:
                runs = [train(rule, attack, liars, seed, options) for seed in range(options.seeds)]
                curves[attack, liars, rule] = [sum(point) / len(runs) for point in zip(*runs, strict=True)]
            vote, mean = (curves[attack, liars, rule][-1] for rule in RULES)
            show(f"{attack:10}{liars:7}{vote:8.3f}{mean:8.3f}", flush=True)
    if rank == 0 and options.plot is not None:
        plot(curves, options)
    dist.barrier()
    dist.destroy_process_group()


def plot(curves: dict[tuple[str, int, str], list[float]], options: argparse.Namespace) -> None:
    """The accuracy against the step, for each attack."""
    from matplotlib.figure import Figure

    columns = min(3, len(options.attacks))
    rows = -(-len(options.attacks) // columns)
    figure = Figure(figsize=(3.1 * columns + 0.6, 2.4 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    colors = ("tab:green", "tab:blue", "tab:orange", "tab:red")
    for axis, attack in zip(axes, options.attacks, strict=False):
        for liars in options.hostile:
            for rule, style in zip(RULES, ("-", ":"), strict=True):
                curve = curves[(attack if liars else "none"), liars, rule]
                steps = [k * options.steps / POINTS for k in range(len(curve))]
                label = f"{rule}, {liars} hostile"
                axis.plot(steps, curve, style, color=colors[liars % len(colors)], label=label)
        axis.set(title=attack, ylim=(0, 1))
        axis.grid(alpha=0.3)
    figure.supxlabel("step")
    figure.supylabel("test accuracy")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize="small")
    figure.savefig(options.plot, dpi=72)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=7, help="default: %(default)s")
    parser.add_argument(
        "--hostile", type=int, nargs="+", default=[0, 1, 2, 3], help="how many; default: %(default)s"
    )
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS), metavar="ATTACK")
    parser.add_argument("--steps", type=int, default=150, help="at least 20; default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=16, help="per worker; default: %(default)s")
    parser.add_argument("--lr", type=float, default=1e-2, help="of both rules; default: %(default)s")
    parser.add_argument("--magnitude", type=float, default=10.0, help="of a lie; default: %(default)s")
    parser.add_argument("--seeds", type=int, default=1, help="runs to average; default: %(default)s")
    parser.add_argument("--plot", type=Path, help="picture to write")
    options = parser.parse_args()
    if options.plot is not None and find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install matplotlib")
    if not all(0 <= count < options.workers for count in options.hostile):
        parser.error(f"--hostile must leave an honest worker of {options.workers}, got {options.hostile}")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (f"{folder}/store", options), options.workers)


if __name__ == "__main__":
    main()
