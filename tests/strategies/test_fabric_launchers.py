"""The program of docs/fabric.md, started in each way that Fabric has."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.test_snippets import ROOT, SNIPPET
from tests.strategies.helpers import environment

MODULE = [sys.executable, "-m"]
COMMANDS = {
    "python": [sys.executable, "train.py"],
    "torchrun": [*MODULE, "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"],
    "fabric run": [*MODULE, "lightning.fabric.cli", "--accelerator", "cpu", "--devices", "2", "train.py"],
}
LAUNCH = 'fabric = Fabric(accelerator="cpu", devices=1, strategy="sign_vote")\nfabric.launch()\n'


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_two_workers_train_alike(command: str, tmp_path: Path) -> None:
    program = "\n".join(SNIPPET.findall((ROOT / "docs" / "fabric.md").read_text()))
    assert LAUNCH in program
    own = LAUNCH.replace("devices=1", "devices=2")
    if command == "fabric run":  # launches by itself
        own = 'fabric = Fabric(strategy="sign_vote")\n'
    (tmp_path / "train.py").write_text(program.replace(LAUNCH, own))
    done = subprocess.run(
        COMMANDS[command], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    found = re.findall(r"worker (\d) sent (\d+) bytes, weights (\[[^]]*\])", done.stdout)
    assert sorted(worker for worker, _, _ in found) == ["0", "1"], done.stdout
    assert len({weights for _, _, weights in found}) == 1
    assert all(int(sent) > 0 for _, sent, _ in found)
