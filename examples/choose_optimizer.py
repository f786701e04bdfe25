"""Every method on one real problem: loss against steps, gradient evaluations and bits sent.

    python examples/choose_optimizer.py --workers 3 --skew 0.1 --plot choose.png

trains a small network on scikit-learn's digits (1,797 real scans) with real worker processes. Each
method gets the same steps, batches and initial weights, a cosine schedule, and the best of a grid of
learning rates by final training loss. ``--skew ALPHA`` splits the labels unevenly over the workers,
by a Dirichlet distribution: the smaller, the more each worker sees classes of its own.

SignProx and ProxSignSGD are for losses with a regularizer, and not here: see restore_photo.py.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_signvr import optimizers as signs
from lightning_signvr.optimizers import AnchoredOptimizer, SignOptimizer, SnapshotOptimizer
from lightning_signvr.replay import Replay


@dataclass(frozen=True)
class Method:
    """A way to make an optimizer.

    Attributes:
        rate: its learning rates are so many times those of ``--lr``.
        reshuffles: whether it goes through the data epoch by epoch, where others draw at random.
    """

    make: Callable[..., SignOptimizer]
    rate: float = 1.0
    reshuffles: bool = False


FAMILIES: dict[str, dict[str, Method]] = {
    "signs": {
        "SignSGD": Method(lambda p, lr: signs.SignSGD(p, lr)),
        "Signum": Method(lambda p, lr: signs.Signum(p, lr)),
        "Lion": Method(lambda p, lr: signs.Lion(p, lr)),
        "Lion, mean": Method(lambda p, lr: signs.Lion(p, lr, average=True)),
    },
    "random signs": {
        "StoSignSGD": Method(
            lambda p, lr: signs.StoSignSGD(p, lr, momentum=0.9, radius=3.0, radius_policy="rms"), rate=3.0
        ),
        "NoisySignSGD": Method(lambda p, lr: signs.NoisySignSGD(p, lr, momentum=0.9, sigma=0.01), rate=3.0),
        "SSDM": Method(lambda p, lr: signs.SSDM(p, lr), rate=10.0),
    },
    "variance reduction": {
        "SSVR": Method(lambda p, lr: signs.SSVR(p, lr, beta=0.1)),
        "SSVR, tempered": Method(lambda p, lr: signs.SSVR(p, lr, beta=0.1, correction=0.1)),
        "MARSLion": Method(lambda p, lr: signs.MARSLion(p, lr)),
        "SSVRMV": Method(lambda p, lr: signs.SSVRMV(p, lr, radius=3.0, radius_policy="rms"), rate=3.0),
        "SSVRMV, option 2": Method(
            lambda p, lr: signs.SSVRMV(p, lr, radius=1.0, radius_policy="fixed", option=2), rate=10.0
        ),
    },
    "finite sums": {
        "SSVRFS": Method(lambda p, lr: signs.SSVRFS(p, lr, beta=0.1)),
        "SignSVRG": Method(lambda p, lr: signs.SignSVRG(p, lr)),
        "SignRVR": Method(lambda p, lr: signs.SignRVR(p, lr), reshuffles=True),
        "SignRVM": Method(lambda p, lr: signs.SignRVM(p, lr), reshuffles=True),
    },
    "compressed increments": {
        "DVRSign": Method(lambda p, lr: signs.DVRSign(p, lr, beta=0.1)),
        "DVRQ": Method(lambda p, lr: signs.DVRQ(p, lr, beta=0.1), rate=10.0),
        "DVRSignFS": Method(lambda p, lr: signs.DVRSignFS(p, lr)),
        "DVRQFS": Method(lambda p, lr: signs.DVRQFS(p, lr), rate=10.0),
    },
    "error feedback": {
        "EFSignSGD": Method(lambda p, lr: signs.EFSignSGD(p, lr, momentum=0.9), rate=10.0),
        "EFSignum": Method(lambda p, lr: signs.EFSignum(p, lr)),
        "EFLion": Method(lambda p, lr: signs.EFLion(p, lr)),
    },
}
METHODS = {name: method for family in FAMILIES.values() for name, method in family.items()}
TEST_IMAGES = 360


@cache
def load() -> tuple[Tensor, Tensor]:
    """Images as rows of 64 numbers in [0, 1], in a fixed random order; labels."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = torch.tensor(digits.data[order], dtype=torch.float32) / 16
    return images, torch.tensor(digits.target[order])


def share_of(rank: int, workers: int, labels: Tensor, skew: float | None) -> Tensor:
    """Indices of a worker's training data: every n-th image, or by Dirichlet-distributed labels."""
    if skew is None:
        return torch.arange(rank, len(labels), workers)
    generator = np.random.default_rng(1)
    parts: list[np.ndarray] = []
    for label in range(10):
        images = np.flatnonzero(labels.numpy() == label)
        cuts = np.cumsum(generator.dirichlet([skew] * workers))[:-1] * len(images)
        parts.append(np.split(images, cuts.astype(int))[rank])
    return torch.from_numpy(np.concatenate(parts))


def draw(indices: Tensor, size: int, reshuffles: bool, rank: int) -> Iterator[Tensor]:
    """One minibatch after the other, without end."""
    generator = torch.Generator().manual_seed(100 + rank)
    while True:
        if reshuffles:
            yield from indices[torch.randperm(len(indices), generator=generator)].split(size)
        else:
            yield indices[torch.randint(len(indices), (size,), generator=generator)]


def train(
    method: str, lr: float, rank: int, workers: int, options: argparse.Namespace
) -> dict[str, list[float]]:
    """One run; what was seen every ``options.every`` steps."""
    images, labels = load()
    training = slice(0, len(labels) - TEST_IMAGES)
    mine = share_of(rank, workers, labels[training], options.skew)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    optimizer = METHODS[method].make(model.parameters(), lr)
    optimizer.vote.topology = "two_phase"  # as a large model would; so small a one takes one phase
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    replay = Replay(optimizer, model)
    minibatches = draw(mine, options.batch_size, METHODS[method].reshuffles, rank)
    epoch = -(
        -(len(labels) - TEST_IMAGES) // (workers * options.batch_size)
    )  # steps, the same on all workers
    curve: dict[str, list[float]] = {"step": [], "evaluations": [], "bits": [], "loss": [], "accuracy": []}
    evaluations = 0.0
    parameters = sum(p.numel() for p in model.parameters())

    def loss_of(indices: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(images[indices]), labels[indices])

    for step in range(options.steps + 1):
        if step % options.every == 0:
            with torch.no_grad():
                curve["step"].append(step)
                curve["evaluations"].append(evaluations)
                curve["bits"].append(optimizer.vote.traffic.bytes_sent * 8 / parameters)
                curve["loss"].append(
                    nn.functional.cross_entropy(model(images[training]), labels[training]).item()
                )
                correct = model(images[-TEST_IMAGES:]).argmax(1) == labels[-TEST_IMAGES:]
                curve["accuracy"].append(correct.float().mean().item())
        if step == options.steps:
            break
        if isinstance(optimizer, SnapshotOptimizer) and step % epoch == 0:
            with optimizer.take_snapshot():
                loss_of(mine).backward()
            evaluations += len(mine) / options.batch_size
        batch = next(minibatches)
        optimizer.zero_grad()
        replay.backward(lambda batch=batch: loss_of(batch))
        evaluations += 1
        if isinstance(optimizer, AnchoredOptimizer):
            evaluations += len(optimizer.active_anchors())
        optimizer.step()
        schedule.step()
    return curve


def work(rank: int, store: str, options: argparse.Namespace, results: Any) -> None:
    """All methods at all learning rates on one worker."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=options.workers)
    for method in options.methods:
        grid = [METHODS[method].rate * lr for lr in options.lr]
        runs = {lr: train(method, lr, rank, options.workers, options) for lr in grid}
        if rank == 0:
            best = min(runs, key=lambda lr: runs[lr]["loss"][-1])
            results.put((method, best, runs[best]))
    dist.barrier()
    dist.destroy_process_group()


def plot(curves: dict[str, dict[str, list[float]]], title: str, path: Path) -> None:
    """Training loss against three axes; a colour per family, thick for the one that ends lowest."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        raise SystemExit("--plot needs matplotlib: pip install matplotlib") from None
    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4.8), sharey=True, layout="constrained")
    labels = {
        "step": "steps",
        "evaluations": "gradient evaluations per worker",
        "bits": "bits sent per parameter",
    }
    for axis, (key, label) in zip(axes, labels.items(), strict=True):
        for number, (family, members) in enumerate(FAMILIES.items()):
            shown = sorted(curves.keys() & members, key=lambda method: curves[method]["loss"][-1])
            for place, method in enumerate(shown):
                style = {"lw": 0.7, "alpha": 0.6} if place else {"lw": 2.2, "label": f"{family}: {method}"}
                axis.semilogy(curves[method][key], curves[method]["loss"], color=f"C{number}", **style)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("training loss")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    figure.suptitle(title)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=300, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=32, help="per worker; default: %(default)s")
    parser.add_argument(
        "--lr",
        type=float,
        nargs="+",
        default=[3e-3, 1e-2, 3e-2],
        help="grid, multiplied for methods that need other learning rates; default: %(default)s",
    )
    parser.add_argument("--skew", type=float, help="Dirichlet parameter; default: like data for all")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--every", type=int, default=10, help="steps between points; default: %(default)s")
    parser.add_argument("--plot", type=Path, help="picture to write")
    options = parser.parse_args()

    results = mp.get_context("fork").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        context = mp.start_processes(
            work, (f"{folder}/store", options, results), options.workers, join=False, start_method="fork"
        )
        print(f"{'method':18}{'lr':>8}{'loss':>10}{'test acc.':>11}{'gradients':>11}{'bits/param/step':>17}")
        curves = {}
        for _ in options.methods:
            while results.empty() and not context.join(0.1):
                pass
            method, lr, curve = results.get()
            curves[method] = curve
            print(
                f"{method:18}{lr:8.0e}{curve['loss'][-1]:10.4f}{curve['accuracy'][-1]:11.3f}"
                f"{curve['evaluations'][-1] / options.steps:11.2f}{curve['bits'][-1] / options.steps:17.3f}",
                flush=True,
            )
        while not context.join():
            pass
    if options.plot is not None:
        data = "like data" if options.skew is None else f"labels split by Dirichlet({options.skew})"
        plot(curves, f"Digits, {options.workers} workers, {data}", options.plot)


if __name__ == "__main__":
    main()
