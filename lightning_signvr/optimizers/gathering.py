"""Gradients over many batches, apart from those of a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_signvr.optimizers.gradient_apart import gradient_apart, take_gradient
from lightning_signvr.signs.finite import is_finite


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


def check_finite(gradients: dict[Tensor, Tensor], optimizer: Optimizer, block: str) -> None:
    """Refuse gathered gradients with NaN or inf, before an estimate is made of them.

    Args:
        gradients: of an optimizer's parameters.
        optimizer: it.
        block: in which they were computed, for the message.

    Raises:
        RuntimeError: one is not finite, with the parameter's place.
    """
    for number, group in enumerate(optimizer.param_groups):
        for position, parameter in enumerate(group["params"]):
            if parameter in gradients and not is_finite(gradients[parameter]):
                raise RuntimeError(
                    f"the gradient of parameter {position} of group {number}, of shape "
                    f"{tuple(parameter.shape)}, has NaN or inf at the end of {block}, and nothing of it was "
                    "kept: look for NaN in this worker's data, or leave out batches whose loss is not finite"
                )


def trained_parameters(optimizer: Optimizer) -> list[Tensor]:
    """The parameters of an optimizer that require a gradient, in the order of the vote's tensors."""
    return [parameter for parameter, _ in trained(optimizer)]


def trained(optimizer: Optimizer) -> list[tuple[Tensor, dict[str, Any]]]:
    """:func:`trained_parameters`, each with its group."""
    return [
        (parameter, group)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad
    ]
