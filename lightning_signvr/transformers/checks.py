"""What cannot be trained by votes, said in the words of TrainingArguments."""

from __future__ import annotations

import os
from typing import Any


def check_arguments(args: Any) -> None:
    """Raise where TrainingArguments ask for what a vote cannot do.

    Args:
        args: the TrainingArguments.

    Raises:
        ValueError: a model in parts, several GPUs in one process, an optimizer that steps in backward.
        RuntimeError: several processes of which each trains alone.
    """
    for name in ("fsdp", "deepspeed", "parallelism_config"):
        if getattr(args, name, None):
            raise ValueError(
                f"TrainingArguments({name}=...) splits the model or its state, and SignVoteTrainer needs a "
                "whole replica of the model in each process: leave it out"
            )
    optim = getattr(args.optim, "value", args.optim)  # an enum that str() does not spell
    if "lomo" in optim:
        raise ValueError(
            f"TrainingArguments(optim={optim!r}) changes the parameters during the backward pass, "
            "before any vote: use an optimizer of lightning_signvr"
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"one process would train on {args.n_gpu} GPUs with DataParallel, which averages gradients: "
            f"start one process per GPU, `torchrun --nproc-per-node {args.n_gpu} SCRIPT`"
        )
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 and args.world_size == 1:
        raise RuntimeError(
            f"{processes} processes were started, and each of them would train alone, since there is no GPU: "
            "on CPUs pass TrainingArguments(use_cpu=True)"
        )
