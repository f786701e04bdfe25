"""The shapes of a model's parameters: of a real one, or assumed from their number."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Sequence

import torch
from torch import nn

Shapes = Sequence[tuple[int, ...]]

ASSUMED_SIDE = 768
"""Side of the matrices that a model is assumed to consist of. In ResNet-50 the square root of their mean size
is 690, in GPT-2 small 1,560 with its embedding and 1,330 without."""


def assumed_shapes(parameters: int, tensors: int | None = None) -> list[tuple[int, ...]]:
    """Shapes of a model of which only the size is known.

    A third of the tensors are square matrices of equal size, which hold nearly all parameters; the rest are
    vectors (biases, normalization), as in ResNets and Transformers.

    Args:
        parameters: their number.
        tensors: their number; None for as many as make the matrices ``ASSUMED_SIDE`` wide.

    Raises:
        ValueError: more tensors than parameters.

    Example:
        >>> assumed_shapes(103, tensors=3)
        [(10, 10), (2,), (1,)]
    """
    if tensors is None:
        tensors = min(parameters, 3 * max(1, round(parameters / ASSUMED_SIDE**2)))
    if tensors > parameters:
        raise ValueError(f"tensors is {tensors}, more than the {parameters} parameters")
    if tensors == 1:
        return [(parameters,)]
    matrices = -(-tensors // 3)
    vectors = tensors - matrices
    side = math.isqrt((parameters - vectors) // matrices)
    rest = parameters - matrices * side**2
    lengths = [rest // vectors + (index < rest % vectors) for index in range(vectors)]
    return [(side, side)] * matrices + [(length,) for length in lengths]


def load_shapes(path: str) -> list[tuple[int, ...]]:
    """Shapes of the trainable parameters of the model at an import path.

    The model is built on the meta device, which takes no memory; where it cannot be, for real.

    Args:
        path: ``package.module:name`` of a class or function that is called without arguments and gives
            a module, or of a module. The working directory is searched too.

    Raises:
        ValueError: the path is not of that form, does not import, or gives no model; with the reason.

    Example:
        >>> load_shapes("lightning.pytorch.demos.boring_classes:BoringModel")
        [(2, 32), (2,)]
    """
    model = _build(path, _find(path))
    shapes = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if isinstance(parameter, nn.UninitializedParameter):
            raise ValueError(
                f"parameter {name!r} of {path} has no shape before the first batch (a lazy module): name a "
                "function that returns the model after a forward pass"
            )
        shapes.append(tuple(parameter.shape))
    if not shapes:
        raise ValueError(f"{path} has no trainable parameters")
    return shapes


def _find(path: str) -> object:
    module_name, colon, attribute = path.partition(":")
    if not (colon and module_name and attribute):
        raise ValueError(f"{path!r} is not an import path of the form package.module:Class")
    if os.getcwd() not in sys.path:  # a console script has its own folder there instead
        sys.path.insert(0, os.getcwd())
    try:
        found: object = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{module_name} cannot be imported: {_describe(error)}") from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise ValueError(f"{module_name} has no {attribute!r}")
        found = getattr(found, name)
    return found


def _build(path: str, factory: object) -> nn.Module:
    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        raise ValueError(f"{path} is a {type(factory).__name__}, not a class or function that makes a model")
    try:
        with torch.device("meta"):
            model = factory()
    except (Exception, SystemExit):  # reads numbers that the meta device does not have, or is wrong
        try:
            model = factory()
        except (Exception, SystemExit) as error:
            raise ValueError(f"{path} cannot be called without arguments: {_describe(error)}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{path} gives a {type(model).__name__}, not a torch.nn.Module")
    return model


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
