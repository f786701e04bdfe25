"""Other kinds of Trainer vote, too."""

from __future__ import annotations

from pathlib import Path

from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from lightning_signvr import Signum
from lightning_signvr.transformers import SignVoteTrainer, SignVoteTrainerMixin
from tests.transformers.helpers import Normalized, arguments, points


class VotingSeq2SeqTrainer(SignVoteTrainerMixin, Seq2SeqTrainer):
    vote_rules = {"ties": "zero", "seed": 3}  # noqa: RUF012


def test_a_seq2seq_trainer_votes_by_its_rules(tmp_path: Path) -> None:
    args = Seq2SeqTrainingArguments(
        str(tmp_path), use_cpu=True, max_steps=2, report_to=[], disable_tqdm=True, save_strategy="no"
    )
    model = Normalized()
    optimizer = Signum(model.parameters(), lr=0.01)
    trainer = VotingSeq2SeqTrainer(model, args, train_dataset=points(40), optimizers=(optimizer, None))
    trainer.train()
    [vote] = trainer.sign_vote.votes
    assert optimizer.vote is vote
    assert (vote.step, vote.ties, vote.seed) == (2, "zero", 3)


def test_biases_do_not_decay(tmp_path: Path) -> None:
    args = arguments(str(tmp_path), max_steps=2, weight_decay=0.1)
    signum = (Signum, {"lr": 0.01})
    trainer = SignVoteTrainer(Normalized(), args, train_dataset=points(40), optimizer_cls_and_kwargs=signum)
    trainer.train()
    [optimizer] = trainer.sign_vote.optimizers
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
