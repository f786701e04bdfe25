"""Gradients over many batches, apart from those of a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor
from torch.optim import Optimizer

from lightning_signvr.optimizers.gradient_apart import gradient_apart, take_gradient


@contextmanager
def gathered_gradients(parameters: Sequence[Tensor]) -> Iterator[dict[Tensor, Tensor]]:
    """The sums of the gradients that the block computes, there when it has ended.

    ``.grad`` begins empty and is put back at the end. If the block raises, nothing is gathered.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> with gathered_gradients([weight]) as sums:
        ...     for number in (1, 2):
        ...         (number * weight).sum().backward()
        >>> sums[weight], weight.grad
        (tensor([3.]), None)
    """
    own = [parameter.grad for parameter in parameters]
    sums: dict[Tensor, Tensor] = {}
    with ExitStack() as way_back:
        for parameter in parameters:
            way_back.enter_context(gradient_apart(parameter))
        yield sums
        for parameter, other in zip(parameters, own, strict=True):
            gradient = take_gradient(parameter, other)
            if gradient is not None:
                sums[parameter] = gradient


def trained_parameters(optimizer: Optimizer) -> list[Tensor]:
    """The parameters of an optimizer that require a gradient, in the order of the vote's tensors."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
