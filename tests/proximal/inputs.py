"""Regularizers and tensors that several tests use."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from lightning_signvr.proximal import (
    L0,
    L1,
    Box,
    ElasticNet,
    GroupL21,
    NonNegative,
    NuclearNorm,
    SquaredL2,
    TotalVariation1d,
    TotalVariation2d,
)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

CONVEX_WITH_PROX = (
    L1(0.7),
    SquaredL2(0.7),
    ElasticNet(0.7, 0.4),
    Box(-0.5, 1.5),
    NonNegative(),
    GroupL21(0.7, dim=0),
    GroupL21(0.7, dim=-1),
    NuclearNorm(0.7),
    TotalVariation1d(0.7),
    *TotalVariation1d(0.7).components,
    *TotalVariation2d(0.7).components,
)
WITH_PROX = (*CONVEX_WITH_PROX, L0(0.7))
EVERY = (*WITH_PROX, TotalVariation2d(0.7))

STEPS = st.sampled_from([0.01, 0.5, 1.0, 3.0])
# small whole numbers give ties, zeros and equal neighbours; the others anything
ELEMENTS = st.integers(-3, 3).map(float) | st.floats(-10, 10)


def tensors(*shape: int) -> st.SearchStrategy[torch.Tensor]:
    """float64 tensors of one shape."""
    numel = torch.Size(shape).numel()
    lists = st.lists(ELEMENTS, min_size=numel, max_size=numel)
    return lists.map(lambda numbers: torch.tensor(numbers, dtype=torch.float64).reshape(shape))


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Gaussian float64 numbers, the same for each seed."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, dtype=torch.float64, generator=generator)


def residual(regularizer, x, step):
    """``prox`` and ``(x - prox) / step``, which has to be a subgradient at ``prox``."""
    point = regularizer.prox(x, step)
    return point, (x - point) / step
