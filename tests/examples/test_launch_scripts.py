"""The scripts that start a program on several machines; all machines are this one.

``torchrun`` and ``accelerate launch`` are the real ones. There is no Slurm here: ``srun`` and ``scontrol``
are stand-ins, which start real processes with the variables that Slurm gives them. So the scripts are run
as they are, and it is Lightning's own ``SLURMEnvironment`` that reads the variables.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.examples.running import ROOT

pytestmark = pytest.mark.timeout(240)  # seconds, where many programs share few cores

LAUNCH = ROOT / "examples" / "launch"
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
TRAIN = "examples/launch/train.py"
WORKER = re.compile(
    r"^worker (\d) of (\d), number (\d) on machine (\d): (\d+) steps, (\S+) bits/parameter$", re.MULTILINE
)

SRUN = """#!/bin/bash
set -eu
while [[ $1 == --* ]]; do shift; done
for ((id = 0; id < SLURM_NTASKS; id++)); do
    SLURM_PROCID=$id SLURM_LOCALID=$((id % SLURM_NTASKS_PER_NODE)) \\
        SLURM_NODEID=$((id / SLURM_NTASKS_PER_NODE)) "$@" &
    tasks+=($!)
done
for task in "${tasks[@]}"; do wait "$task"; done
"""
SCONTROL = """#!/bin/bash
[[ "$*" == "show hostnames 127.0.0.[1-2]" ]] && printf '%s\\n' 127.0.0.1 127.0.0.2
"""


def free_port() -> int:
    """One in the range that jobs of Slurm choose from."""
    for port in range(15000 + os.getpid() % 9000, 25000):
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise RuntimeError("no port is free")


def start(command: list[str], **variables: str) -> subprocess.Popen[str]:
    """What a user types on a machine whose environment has these variables."""
    theirs = ("SLURM_", "MASTER_", "NODE_RANK")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
    own = {"PATH": PATH, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**inherited, **own, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(machines: list[subprocess.Popen[str]]) -> tuple[str, str]:
    """What all of them printed: stdout and stderr."""
    try:
        printed = [machine.communicate(timeout=230) for machine in machines]
    finally:
        for machine in machines:
            if machine.poll() is None:
                os.killpg(machine.pid, signal.SIGKILL)
                machine.wait()
    outputs, errors = ("".join(texts) for texts in zip(*printed, strict=True))
    assert [machine.returncode for machine in machines] == [0] * len(machines), errors
    return outputs, errors


def two_machines(*command: str) -> tuple[str, str]:
    """The command on both."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return wait_for([start(list(command), NODE_RANK=str(rank), **address) for rank in range(2)])


def sbatch(folder: Path, script: str, *arguments: str, **options: str) -> tuple[str, str]:
    """``sbatch --options script arguments``; what is not among the options, the script says itself."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    said = dict(re.findall(r"^#SBATCH --(\S+?)=(\S+)", (LAUNCH / script).read_text(), re.MULTILINE))
    said.update({name.replace("_", "-"): value for name, value in options.items()})
    variables = {
        "SLURM_JOB_ID": str(70_000 + free_port() - 15_000),
        "SLURM_JOB_NAME": said["job-name"],
        "SLURM_NTASKS": str(int(said["nodes"]) * int(said["ntasks-per-node"])),
        "SLURM_NTASKS_PER_NODE": said["ntasks-per-node"],
        "SLURM_CPUS_PER_TASK": "1",
        **dict.fromkeys(("SLURM_NNODES", "SLURM_JOB_NUM_NODES"), said["nodes"]),
        **dict.fromkeys(("SLURM_NODELIST", "SLURM_JOB_NODELIST"), "127.0.0.[1-2]"),
    }
    command = ["bash", str(LAUNCH / script), *arguments]
    return wait_for([start(command, PATH=f"{folder}:{PATH}", **variables)])


def workers(output: str) -> list[tuple[int, ...]]:
    """Rank, number of workers, rank on its machine, machine and steps of each."""
    lines = [found.groups() for found in WORKER.finditer(output)]
    assert all(float(bits) > 1 for *_, bits in lines)
    return sorted(tuple(map(int, numbers)) for *numbers, _ in lines)


@pytest.mark.slow
def test_torchrun_starts_both_machines_and_resumes(tmp_path: Path) -> None:
    train = [TRAIN, "--nodes=2", "--devices=1", f"--folder={tmp_path}"]
    output, _ = two_machines("examples/launch/torchrun.sh", *train, "--steps=50")
    assert workers(output) == [(0, 2, 0, 0, 50), (1, 2, 0, 1, 50)]
    output, log = two_machines("examples/launch/torchrun.sh", *train, "--steps=60")
    assert workers(output) == [(0, 2, 0, 0, 60), (1, 2, 0, 1, 60)]
    assert f"Restored all states from the checkpoint at {tmp_path}/last.ckpt" in log


@pytest.mark.slow
def test_lightning_needs_no_launcher(tmp_path: Path) -> None:
    options = ("--nodes=2", "--devices=1", "--steps=5", f"--folder={tmp_path}")
    output, _ = two_machines("python", TRAIN, *options)
    assert workers(output) == [(0, 2, 0, 0, 5), (1, 2, 0, 1, 5)]


@pytest.mark.slow
def test_accelerate_starts_both_machines() -> None:
    script = "examples/launch/accelerate.sh"
    output, _ = two_machines(script, "examples/accelerate_digits.py", "--epochs=1")
    lines = re.findall(r"^epoch 1 .*accuracy (\S+) +(\S+) bits", output, re.MULTILINE)
    assert len(lines) == 2  # from each machine
    assert lines[0] == lines[1]
    assert float(lines[0][0]) > 0.5
    assert 1 < float(lines[0][1]) < 1.5  # two workers


@pytest.mark.slow
def test_slurm_starts_lightning(tmp_path: Path) -> None:
    arguments = ["--steps=50", f"--folder={tmp_path}"]
    output, log = sbatch(tmp_path, "slurm_lightning.sbatch", *arguments, ntasks_per_node="2")
    assert workers(output) == [(rank, 4, rank % 2, rank // 2, 50) for rank in range(4)]
    assert "SLURM auto-requeueing enabled" in log  # so it is SLURMEnvironment


@pytest.mark.slow
def test_slurm_starts_torchrun(tmp_path: Path) -> None:
    arguments = [TRAIN, "--nodes=2", "--devices=1", "--steps=5", f"--folder={tmp_path}"]
    output, log = sbatch(tmp_path, "slurm_torchrun.sbatch", *arguments)
    assert workers(output) == [(0, 2, 0, 0, 5), (1, 2, 0, 1, 5)]
    assert "SLURM auto-requeueing" not in log  # Lightning believes torchrun


@pytest.mark.parametrize("script", ["torchrun.sh", "accelerate.sh"])
@pytest.mark.parametrize("missing", ["MASTER_ADDR", "NODE_RANK"])
def test_a_missing_variable_is_named(script: str, missing: str) -> None:
    variables = {"MASTER_ADDR": "127.0.0.1", "NODE_RANK": "0"}
    del variables[missing]
    machine = start([str(LAUNCH / script), TRAIN], **variables)
    _, errors = machine.communicate(timeout=10)
    assert machine.returncode != 0
    assert f"{missing}: the " in errors
