"""Accelerate's own training scripts, from its wheel, launched after at most 4 of their lines were changed."""

from __future__ import annotations

import difflib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.test_utils import scripts

from tests.accelerate.stand_ins.datasets import WORDS
from tests.strategies.helpers import environment

FOLDER = Path(scripts.__file__).parent / "external_deps"
STAND_INS = Path(__file__).parent / "stand_ins"
CONFIG = Path(__file__).parents[2] / "examples" / "accelerate_2_processes.yaml"

IMPORT = (
    "\nfrom accelerate import ",
    "\nfrom lightning_signvr.accelerate import sign_vote\nfrom accelerate import ",
)
VOTING = {  # torch's AdamW on voted gradients
    "test_checkpointing.py": [
        IMPORT,
        (
            "    accelerator = Accelerator()\n",
            "    accelerator = Accelerator()\n    sign_vote(accelerator)\n",
        ),
    ]
}
VARIANCE_REDUCED = {  # SSVR, with its second gradient
    "test_performance.py": [
        IMPORT,
        ("from torch.optim import AdamW\n", "from lightning_signvr.optimizers import SSVR as AdamW\n"),
        (
            "    accelerator = Accelerator(**accelerator_kwargs)\n",
            "    accelerator = Accelerator(**accelerator_kwargs)\n    sv = sign_vote(accelerator)\n",
        ),
        ("accelerator.backward(loss)\n", "sv.backward(lambda: model(**batch).loss)\n"),
    ]
}
EDITS = {**VOTING, **VARIANCE_REDUCED}


def edited(name: str) -> str:
    """The script as installed, with the edits."""
    source = (FOLDER / name).read_text()
    for old, new in EDITS[name]:
        assert source.count(old) >= 1, f"{name} of this version of Accelerate has no {old!r}"
        source = source.replace(old, new, 1)
    return source


@pytest.mark.parametrize(("name", "lines"), [("test_checkpointing.py", 2), ("test_performance.py", 4)])
def test_so_many_lines_change(name: str, lines: int) -> None:
    original = (FOLDER / name).read_text().splitlines()
    difference = list(difflib.ndiff(original, edited(name).splitlines()))
    new, old = (sum(line.startswith(sign) for line in difference) for sign in ("+ ", "- "))
    assert new == lines <= 4
    assert old <= new


def write_model(folder: Path) -> str:
    """A tiny BERT that was never trained, with its tokenizer."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    words = ["[PAD]", "[UNK]", *WORDS]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    )
    fast.save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


def launch(folder: Path, name: str, *arguments: str) -> str:
    """What two processes of the edited script print."""
    script = folder / name
    script.write_text(edited(name))
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG)]
    variables = environment()
    variables |= {
        "PYTHONPATH": f"{STAND_INS}:{variables['PYTHONPATH']}",
        "ACCELERATE_USE_CPU": "true",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [*accelerate, "--main_process_port=0", str(script), "--output_dir", str(folder), *arguments],
        env=variables,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_their_checkpoints_resume(tmp_path: Path) -> None:
    model = ("--model_name_or_path", write_model(tmp_path / "bert"))
    launch(tmp_path, "test_checkpointing.py", *model, "--num_epochs", "2")
    for rank in range(2):
        own = torch.load(tmp_path / "epoch_1" / f"sign_vote_{rank}.bin", weights_only=True)
        assert own["optimizers"] == [{"step": 6}]  # 2 epochs of 96 samples, 2 workers, 16 in a batch
    # their own assertions: accuracy and learning rates are as when the checkpoint was saved
    resumed = launch(
        tmp_path, "test_checkpointing.py", *model, "--resume_from_checkpoint", str(tmp_path / "epoch_0")
    )
    assert "resumed checkpoint performance:" in resumed


@pytest.mark.slow
def test_their_example_trains_with_variance_reduction(tmp_path: Path) -> None:
    launch(tmp_path, "test_performance.py", "--model_name_or_path", write_model(tmp_path / "bert"))
    results = json.loads((tmp_path / "all_results.json").read_text())
    assert list(results) == ["epoch-0", "epoch-1", "epoch-2"]
