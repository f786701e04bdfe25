"""A model in DistributedDataParallel whose gradients stay each worker's own."""

# no `from __future__ import annotations`: torch reads the annotations of hooks as objects
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel


def keep_gradients_local(model: DistributedDataParallel) -> DistributedDataParallel:
    """Switch DDP's all-reduce of gradients off, for optimizers that vote.

    DDP averages gradients at full precision, 32 bits per parameter, before the optimizer sees them. A
    model needs no DDP to train by votes; this is for programs that have one already. It registers a
    communication hook that hands each bucket back as it is: ``.grad`` is then the worker's own gradient,
    with gradient accumulation, ``no_sync``, ``find_unused_parameters``, ``gradient_as_bucket_view`` and
    autocast.

    What DDP still sends: the initial parameters, once; with ``broadcast_buffers=True`` rank 0's buffers
    (BatchNorm's statistics) before forward passes; with ``find_unused_parameters=True`` four bytes per
    tensor and step.

    Args:
        model: as built; a DDP model has one hook at most.

    Returns:
        ``model`` itself.

    Raises:
        TypeError: a model that is not wrapped in DDP.
        RuntimeError: a model that has a hook already.

    Example:
        >>> model = DistributedDataParallel(torch.nn.Linear(2, 1))  # doctest: +SKIP
        >>> keep_gradients_local(model)  # doctest: +SKIP
    """
    if not isinstance(model, DistributedDataParallel):
        raise TypeError(
            f"model must be a DistributedDataParallel, got {type(model).__name__}: the gradients of other "
            "modules are local already (FSDP and DeepSpeed are not supported); of a compiled one pass what "
            "it wraps, model._orig_mod"
        )
    try:
        model.register_comm_hook(None, _as_it_is)
    except RuntimeError as error:
        raise RuntimeError(
            "model has a communication hook already (it is registered once, and DDP's own mixed_precision is "
            "one): build DistributedDataParallel anew, without one, and call keep_gradients_local once"
        ) from error
    return model


def _as_it_is(state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future
