"""What cannot be trained by votes, said before anything starts."""

from __future__ import annotations

import os
from typing import Any

from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import nn
from torch.nn.parallel import DistributedDataParallel

_FIRST = "call sign_vote(accelerator) right after Accelerator(...), before accelerator.prepare(...)"


def check_accelerator(accelerator: Any) -> None:
    """Raise where an Accelerator is not a data-parallel one with nothing prepared.

    Raises:
        TypeError: not an Accelerator.
        ValueError: something was prepared already, or a configuration that shards or averages by itself.
        RuntimeError: several processes of which each trains alone.
    """
    if not isinstance(accelerator, Accelerator):
        raise TypeError(f"accelerator must be an accelerate.Accelerator, got {type(accelerator).__name__}")
    if hasattr(accelerator, "sign_vote"):
        raise ValueError("sign_vote was called twice on this accelerator: keep what the first call returned")
    if accelerator._models or accelerator._optimizers:
        raise ValueError(f"this accelerator has prepared a model or an optimizer already: {_FIRST}")
    _check_parallelism(accelerator)
    _check_precision(accelerator)
    hook = str(getattr(accelerator.ddp_handler, "comm_hook", "no"))
    if hook != "no":
        raise ValueError(
            f"DistributedDataParallelKwargs(comm_hook={hook!r}) would never run, since under sign_vote "
            "gradients are not averaged: leave it out"
        )
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 and accelerator.num_processes == 1:
        raise RuntimeError(
            f"{processes} processes were started, and Accelerate lets each of them train alone, since it "
            "found no GPU: on CPUs build Accelerator(cpu=True), or set ACCELERATE_USE_CPU=true for the launch"
        )


def _check_parallelism(accelerator: Accelerator) -> None:
    kind = accelerator.distributed_type.name
    if kind != "NO" and not kind.startswith("MULTI_"):
        raise ValueError(
            f"Accelerate is configured for {kind}, and sign_vote needs a whole replica of the model in each "
            'process: choose "multi-GPU" or "multi-CPU" in `accelerate config`, without DeepSpeed, FSDP and '
            "Megatron-LM"
        )
    if getattr(accelerator, "parallelism_config", None) is not None:
        raise ValueError(
            "parallelism_config splits the model, and sign_vote needs a whole replica of it in each process: "
            "leave it out"
        )


def _check_precision(accelerator: Accelerator) -> None:
    if accelerator.mixed_precision not in ("no", "bf16", "fp16"):
        raise ValueError(
            f"mixed_precision={accelerator.mixed_precision!r} does not go with sign_vote: "
            'use "no", "bf16" or "fp16"'
        )


def check_model(model: nn.Module) -> None:
    """Raise where a model averages its gradients by itself.

    Raises:
        ValueError: a model in DistributedDataParallel.
    """
    if isinstance(model, DistributedDataParallel):
        raise ValueError(
            "the model is wrapped in DistributedDataParallel, which averages gradients: prepare the bare "
            "module, and do not prepare it with another Accelerator"
        )
