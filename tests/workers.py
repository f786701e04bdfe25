"""Run a function in real processes that form a real gloo process group.

Workers are forked from a server process that has imported torch and Lightning once and done nothing
else, so that each starts in milliseconds and none inherits threads.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["lightning_signvr", "tensorboard", "torchmetrics.classification"])


class WorkerError(RuntimeError):
    """A worker raised, died or did not end in time."""


def run_workers(
    function: Callable[..., Any],
    workers: int,
    *args: Any,
    timeout: float = 60,
    env: dict[str, str] | None = None,
) -> list[Any]:
    """``[function(rank, *args) for each rank]`` in as many processes.

    The function must be importable (module-level). What it returns must be picklable. Every worker
    has the environment that torchrun would give it, so a Lightning Trainer in it joins the group.

    Raises:
        WorkerError: some worker failed; with the tracebacks of all that did. The rest are killed.
    """
    with TemporaryDirectory() as folder:
        pipes, processes = [], []
        port = _free_port()
        for rank in range(workers):
            ours, theirs = _context.Pipe(duplex=False)
            process = _context.Process(
                target=_work,
                args=(theirs, function, rank, workers, args, str(Path(folder) / "store"), port, env or {}),
            )
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        try:
            return _collect(pipes, timeout)
        finally:
            for process in processes:
                process.join(0.5)
                if process.is_alive():
                    process.kill()
                    process.join()


def _collect(pipes: list[Connection], timeout: float) -> list[Any]:
    results: dict[int, Any] = {}
    errors: dict[int, str] = {}
    pending = {pipe: rank for rank, pipe in enumerate(pipes)}
    while pending:
        ready = wait(list(pending), timeout=5 if errors else timeout)
        if not ready:
            for rank in pending.values():
                errors[rank] = f"did not end within {timeout} s"
            break
        for pipe in ready:
            rank = pending.pop(pipe)  # type: ignore[arg-type]
            try:
                failed, value = pickle.loads(pipe.recv_bytes())  # type: ignore[union-attr]
            except EOFError:
                failed, value = True, "died without a word"
            (errors if failed else results)[rank] = value
    if errors:
        raise WorkerError("\n".join(f"rank {rank}: {errors[rank]}" for rank in sorted(errors)))
    return [results[rank] for rank in range(len(pipes))]


def _work(
    pipe: Connection,
    function: Callable[..., Any],
    rank: int,
    workers: int,
    args: tuple[Any, ...],
    store: str,
    port: int,
    env: dict[str, str],
) -> None:
    import torch
    import torch.distributed as dist

    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        GROUP_RANK="0",
        WORLD_SIZE=str(workers),
        LOCAL_WORLD_SIZE=str(workers),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_RUN_ID="test",
        OMP_NUM_THREADS="1",  # else Lightning chooses a number that depends on the workers
        **env,
    )
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=workers)
    try:
        result = (False, function(rank, *args))
        dist.barrier()
    except BaseException:
        result = (True, traceback.format_exc())
    # plain pickle: multiprocessing's own would share tensors, which ends with this process
    pipe.send_bytes(pickle.dumps(result))
    dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
