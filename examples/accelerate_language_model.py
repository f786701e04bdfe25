"""A character-level Transformer with Accelerate: two workers that send one bit per parameter.

    accelerate launch --config_file examples/accelerate_2_processes.yaml examples/accelerate_language_model.py
    torchrun --standalone --nproc-per-node 2 examples/accelerate_language_model.py

learns the help texts that come with Python (some 465,000 characters; they differ between versions), or those
of --text FILE, and then writes some. On the CPU it prints, after a minute or two:

    465048 characters, 103 different ones; 431463 parameters
    step     0   held-out text: 6.881 bits per character
    step   150   held-out text: 3.163 bits per character
    step   300   held-out text: 2.666 bits per character
    step   450   held-out text: 2.304 bits per character
    step   600   held-out text: 2.221 bits per character
    comm/bits_per_parameter 1  comm/savings_vs_fp32 31.9  comm/seconds 0.0195  sign_vote/agreement 0.543
    The consiting anled oneration strue
           print the subclase argument is is the "that argouper ose identates of the dor (a
    ...

AdamW on averaged gradients (--optimizer adamw --no-sign-vote --lr 1e-2), which sends 32 bits per parameter
and step, ends at 2.036: after equal steps votes are behind. All that was tried, with one seed: Signum 2.600
(learning rate 1e-3), 2.221 (3e-3); Lion 2.955 (1e-3), 2.791 (2e-3); EFLion 2.753 (3e-3); AdamW 2.378 (3e-3),
2.090 (6e-3), 2.036 (1e-2). Compare on your own link by time, not by steps.

The lines that make it a sign-vote script are marked with <--.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from pydoc_data.topics import topics

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, RandomSampler

from lightning_signvr.accelerate import sign_vote  # <--
from lightning_signvr.optimizers import EFLion, Lion, Signum

OPTIMIZERS = {"signum": Signum, "lion": Lion, "eflion": EFLion, "adamw": torch.optim.AdamW}
CONTEXT = 64
SHOWN = ("comm/bits_per_parameter", "comm/savings_vs_fp32", "comm/seconds", "sign_vote/agreement")


class GPT(nn.Module):
    """A Transformer that predicts the next character from those before it."""

    def __init__(self, characters: int, width: int = 128, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.characters = nn.Embedding(characters, width)
        self.places = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, characters)

    def forward(self, text: Tensor) -> Tensor:
        length = text.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=text.device)
        hidden = self.characters(text) + self.places[:length]
        return self.head(self.layers(hidden, mask=mask, is_causal=True))


class Windows(Dataset):
    """Pieces of a text, each with the character that follows each of its characters."""

    def __init__(self, text: Tensor, stride: int) -> None:
        self.text, self.stride = text, stride

    def __len__(self) -> int:
        return (len(self.text) - CONTEXT - 1) // self.stride + 1

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        window = self.text[index * self.stride :][: CONTEXT + 1]
        return window[:-1], window[1:]


def losses(model: nn.Module, batch: list[Tensor]) -> Tensor:
    """Of each window, the mean over its characters."""
    inputs, targets = batch
    return cross_entropy(model(inputs).transpose(1, 2), targets, reduction="none").mean(1)


@torch.no_grad()
def bits_per_character(accelerator: Accelerator, model: nn.Module, loader: DataLoader) -> float:
    """On the data of all workers."""
    found = [accelerator.gather_for_metrics(losses(model, batch)) for batch in loader]
    return torch.cat(found).mean().item() / math.log(2)


@torch.no_grad()
def continued(model: nn.Module, text: Tensor, length: int) -> Tensor:
    """The text and ``length`` more characters, drawn one by one."""
    for _ in range(length):
        odds = model(text[None, -CONTEXT:])[0, -1].div(0.7).softmax(0)
        text = torch.cat([text, torch.multinomial(odds, 1)])
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, help="file to learn; default: Python's own help texts")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="signum", help="default: %(default)s")
    parser.add_argument("--lr", type=float, default=3e-3, help="the largest; default: %(default)s")
    parser.add_argument("--steps", type=int, default=600, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=16, help="per worker; default: %(default)s")
    parser.add_argument("--no-sign-vote", action="store_true", help="average gradients by DDP, for adamw")
    parser.add_argument("--sample", type=int, default=300, help="characters to write; default: %(default)s")
    options = parser.parse_args()
    if options.no_sign_vote and options.optimizer != "adamw":
        parser.error(f"--no-sign-vote is for --optimizer adamw, not {options.optimizer}")

    text = options.text.read_text() if options.text else "\n".join(topics[name] for name in sorted(topics))
    alphabet = sorted(set(text))
    code = {character: number for number, character in enumerate(alphabet)}
    numbers = torch.tensor([code[character] for character in text])
    known = len(numbers) * 9 // 10  # the rest is held out
    if len(numbers) - known <= CONTEXT:
        parser.error(f"--text must have more than {10 * CONTEXT} characters, got {len(numbers)}")

    set_seed(0)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    sv = None if options.no_sign_vote else sign_vote(accelerator)  # <--
    model = GPT(len(alphabet))
    optimizer = OPTIMIZERS[options.optimizer](model.parameters(), lr=options.lr, weight_decay=0.1)  # <--
    schedule = torch.optim.lr_scheduler.LambdaLR(  # a short warm-up, then half a cosine
        optimizer, lambda step: min((step + 1) / 50, (1 + math.cos(math.pi * step / options.steps)) / 2)
    )
    windows = Windows(numbers[:known], 1)
    drawn = options.steps * options.batch_size * accelerator.num_processes
    loader = DataLoader(windows, options.batch_size, sampler=RandomSampler(windows, True, drawn))
    held_out = DataLoader(Windows(numbers[known:], CONTEXT), 64)
    model, optimizer, loader, held_out = accelerator.prepare(model, optimizer, loader, held_out)
    size = sum(p.numel() for p in model.parameters())
    accelerator.print(f"{len(text)} characters, {len(alphabet)} different ones; {size} parameters")

    def report(step: int) -> None:
        bits = bits_per_character(accelerator, model, held_out)
        accelerator.print(f"step {step:5}   held-out text: {bits:.3f} bits per character", flush=True)

    report(0)
    for step, batch in enumerate(loader, 1):
        loss = losses(model, batch).mean()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % max(options.steps // 4, 1) == 0:
            report(step)

    if sv is not None:
        means = sv.metrics()  # <--
        accelerator.print("  ".join(f"{key} {means[key]:.3g}" for key in SHOWN if key in means))
    start = torch.tensor([code.get(character, 0) for character in "The "], device=accelerator.device)
    written = continued(accelerator.unwrap_model(model), start, options.sample)
    accelerator.print("".join(alphabet[number] for number in written.tolist()))
    accelerator.end_training()


if __name__ == "__main__":
    main()
