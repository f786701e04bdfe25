"""Fine-tuning with Transformers, launched as a user would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import BertConfig, BertForSequenceClassification, ByT5Tokenizer

from tests.examples.running import ROOT

CONFIG = "examples/accelerate_2_processes.yaml"
ACCELERATE = ("accelerate", "launch", "--config_file", CONFIG, "--main_process_port=0")
TORCHRUN = ("torchrun", "--standalone", "--nproc-per-node=2")
NUMBER = re.compile(r"'([\w/]+)': '?([-+.\de]+)'?")


def run(launcher: tuple[str, ...], *arguments: str) -> list[dict[str, float]]:
    """The records that are printed by ``launcher examples/finetune_transformers.py arguments``."""
    command, *options = launcher
    result = subprocess.run(
        [Path(sys.executable).parent / command, *options, "examples/finetune_transformers.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
    return [{key: float(value) for key, value in NUMBER.findall(line)} for line in lines]


def only(key: str, records: list[dict[str, float]]) -> list[float]:
    return [record[key] for record in records if key in record]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_workers_learn_with_one_bit_and_resume(tmp_path: Path) -> None:
    first = run(ACCELERATE, "--epochs", "0.5", "--save", str(tmp_path))
    [accuracy] = only("eval_accuracy", first)  # one process prints
    assert accuracy > 0.8
    [bits] = only("comm/bits_per_parameter", first)
    assert 1 < bits < 1.1

    second = run(TORCHRUN, "--epochs", "0.7", "--save", str(tmp_path), "--resume")
    [epoch] = {record["epoch"] for record in second if "eval_accuracy" in record}
    assert epoch == pytest.approx(0.7, abs=0.01)
    assert only("eval_accuracy", second)[0] > accuracy - 0.02
    assert (tmp_path / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_model_from_a_folder(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertForSequenceClassification(BertConfig(vocab_size=259, **sizes)).save_pretrained(tmp_path)
    ByT5Tokenizer(extra_ids=0).save_pretrained(tmp_path)
    assert only("eval_accuracy", run(TORCHRUN, "--epochs", "0.1", "--model", str(tmp_path)))
