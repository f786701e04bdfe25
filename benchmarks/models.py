"""Models of the sizes that people train, for benchmarks: shapes matter, what they learn does not.

Every model maps a batch to logits ``[rows, classes]`` and comes with a function that makes batches of the
right shape, so that one training step serves all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Model:
    """Something to train.

    Attributes:
        build: makes the module, with the same weights each time.
        batch: makes inputs and targets of one step from a generator.
        description: one line for tables' captions.
    """

    build: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Batch]
    description: str


def _mlp() -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(1024, 2048), nn.Tanh()]
    for _ in range(2):
        layers += [nn.Linear(2048, 2048), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(2048, 10))


def _mlp_batch(generator: torch.Generator) -> Batch:
    return torch.randn(16, 1024, generator=generator), torch.randint(10, (16,), generator=generator)


class _Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width

        def conv(a: int, b: int, size: int, stride: int = 1) -> list[nn.Module]:
            return [nn.Conv2d(a, b, size, stride, padding=size // 2, bias=False), nn.BatchNorm2d(b)]

        self.path = nn.Sequential(
            *conv(inputs, width, 1),
            nn.ReLU(),
            *conv(width, width, 3, stride),
            nn.ReLU(),
            *conv(width, outputs, 1),
        )
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Sequential(*conv(inputs, outputs, 1, stride)) if changes else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.path(images) + self.shortcut(images))


def _resnet50() -> nn.Module:
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, padding=3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1),
    ]
    inputs = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for block in range(blocks):
            layers.append(_Bottleneck(inputs, width, 2 if stage and not block else 1))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


def _image_batch(generator: torch.Generator) -> Batch:
    return torch.randn(2, 3, 64, 64, generator=generator), torch.randint(1000, (2,), generator=generator)


class _Transformer(nn.Module):
    """Causal language model with tied embeddings."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, positions: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(positions, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        hidden = self.tokens(tokens) + self.positions.weight[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        for layer in self.layers:
            hidden = layer(hidden, src_mask=mask, is_causal=True)
        return (self.norm(hidden) @ self.tokens.weight.T).flatten(0, 1)


def _gpt2() -> nn.Module:
    return _Transformer(vocabulary=50257, width=768, layers=12, heads=12, positions=1024)


def _token_batch(generator: torch.Generator) -> Batch:
    tokens = torch.randint(50257, (1, 33), generator=generator)
    return tokens[:, :-1], tokens[:, 1:].flatten()


def _seeded(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def seeded() -> nn.Module:
        torch.manual_seed(0)
        return build()

    return seeded


MODELS = {
    "mlp": Model(_seeded(_mlp), _mlp_batch, "an MLP 1024-2048-2048-2048-10, batch 16"),
    "resnet50": Model(_seeded(_resnet50), _image_batch, "a CNN of ResNet-50's shape, 2 images of 64 x 64"),
    "gpt2": Model(_seeded(_gpt2), _token_batch, "a Transformer of GPT-2 small's shape, 32 tokens"),
}
