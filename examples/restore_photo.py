"""Take the noise out of a photograph with one bit per pixel and step: SignProx beside proximal gradient.

    python examples/restore_photo.py --plot signprox.png

adds Gaussian noise to a photograph (from scikit-learn's wheel: "china.jpg", grey, 160x240) and minimizes

    sum (x - noisy)^2 / 2  +  strength * anisotropic total variation of x

with the proximal gradient method and with SignProx, which moves each pixel by the learning rate up or down:
with all four components of the total variation in each step, and with few drawn at random. All make the same
number of iterations with the same steps, which decay linearly to 0.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.datasets import load_sample_image
from torch import Tensor

from lightning_signvr.optimizers.signprox import SignProx
from lightning_signvr.proximal import TotalVariation2d

SHAPE = (160, 240)


@dataclass
class Restoration:
    """The image that a method found, and how it got there."""

    name: str
    image: Tensor
    objectives: list[float]


def load_photo() -> Tensor:
    """The photograph in shades of grey between 0 and 1."""
    colours = torch.tensor(load_sample_image("china.jpg"), dtype=torch.float32) / 255
    grey = colours @ torch.tensor([0.299, 0.587, 0.114])
    return torch.nn.functional.interpolate(grey[None, None], size=SHAPE, mode="area")[0, 0]


def psnr(image: Tensor, original: Tensor) -> float:
    """Peak signal-to-noise ratio in dB."""
    return -10 * math.log10((image - original).square().mean().item())


def proximal_gradient(
    noisy: Tensor, regularizer: TotalVariation2d, options: argparse.Namespace
) -> Iterator[Tensor]:
    """Iterates of ``x <- mean over k of prox_{step r_k}(x - step * (x - noisy))``."""
    image, components = noisy, regularizer.components
    for iteration in range(options.iterations):
        step = options.lr * (1 - iteration / options.iterations)
        moved = image - step * (image - noisy)
        image = sum(component.prox(moved, step) for component in components) / len(components)
        yield image


def signprox(
    noisy: Tensor, regularizer: TotalVariation2d, options: argparse.Namespace, components: int | None = None
) -> Iterator[Tensor]:
    """Iterates of SignProx."""
    image = torch.nn.Parameter(noisy.clone())
    optimizer = SignProx([image], lr=options.lr, regularizer=regularizer, components_per_step=components)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / options.iterations)
    for _ in range(options.iterations):
        optimizer.zero_grad()
        ((image - noisy).square().sum() / 2).backward()
        optimizer.step()
        schedule.step()
        yield image.detach()


def plot(path: Path, original: Tensor, noisy: Tensor, results: list[Restoration]) -> None:
    """Draw the images and the objective against iterations."""
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit("--plot needs matplotlib: pip install matplotlib") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(11, 5.4), layout="constrained")
    images = [("original", original), ("noisy", noisy), *((each.name, each.image) for each in results[:3])]
    for (name, image), panel in zip(images, axes.flat, strict=False):
        panel.imshow(image, cmap="gray", vmin=0, vmax=1)
        panel.set_title(name if image is original else f"{name}: {psnr(image, original):.1f} dB", fontsize=10)
        panel.set_axis_off()
    curves = axes.flat[-1]
    for result, style in zip(results, ("k-", "C0--", "C1-", "C2-.", "C3:", "C4-", "C5--"), strict=False):
        curves.plot(result.objectives, style, label=result.name)
    curves.set_title("objective", fontsize=10)
    curves.set_xlabel("iterations")
    curves.legend(fontsize=8)
    figure.savefig(path, dpi=80, pil_kwargs={"optimize": True})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--iterations", type=int, default=200, help="of each method (default: 200)")
    parser.add_argument("--lr", type=float, default=0.03, help="first step, decays to 0 (default: 0.03)")
    parser.add_argument("--strength", type=float, default=0.08, help="of the total variation (default: 0.08)")
    parser.add_argument("--noise", type=float, default=0.1, help="standard deviation (default: 0.1)")
    parser.add_argument(
        "--components", type=int, nargs="*", default=[1, 8],
        help="random components per step; one run for each number (default: 1 8)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument("--plot", type=Path, help="where to draw the result, for example signprox.png")
    options = parser.parse_args()

    torch.set_num_threads(1)
    original, regularizer = load_photo(), TotalVariation2d(options.strength)
    generator = torch.Generator().manual_seed(options.seed)
    noisy = original + options.noise * torch.randn(SHAPE, generator=generator)

    def objective(image: Tensor) -> float:
        return ((image - noisy).square().sum() / 2 + regularizer.value(image)).item()

    methods = {
        "proximal gradient": proximal_gradient(noisy, regularizer, options),
        "SignProx, all components": signprox(noisy, regularizer, options),
    }
    for number in options.components:
        methods[f"SignProx, {number} random"] = signprox(noisy, regularizer, options, number)
    results = []
    for name, iterates in methods.items():
        result = Restoration(name, noisy, [objective(noisy)])
        for image in iterates:
            result.image = image
            result.objectives.append(objective(image))
        results.append(result)

    print(f"{options.iterations} iterations, strength {options.strength}, noise {options.noise}")
    print(f"{'':26}{'objective':>11}{'PSNR in dB':>12}")
    print(f"{'noisy photograph':26}{objective(noisy):11.2f}{psnr(noisy, original):12.2f}")
    for each in results:
        print(f"{each.name:26}{each.objectives[-1]:11.2f}{psnr(each.image, original):12.2f}")
    if options.plot:
        plot(options.plot, original, noisy, results)
        print(f"drawn: {options.plot}")


if __name__ == "__main__":
    main()
