"""What a vote refuses, and that it does so on every rank."""

from __future__ import annotations

import pytest
import torch

from lightning_signvr.voting import LocalVote, MajorityVote
from tests.voting.oracle import expected_outcome, outcome_of, parameters, random
from tests.workers import run_workers

# -- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MajorityVote, LocalVote])
def test_rules_and_seeds_are_checked(kind):
    for argument, value, error, reason in (
        ("ties", "coin", ValueError, "'random', 'zero', 'positive', got 'coin'"),
        ("ties", None, ValueError, "got None"),
        ("zeros", "zero", ValueError, "'abstain', 'random', 'positive', got 'zero'"),
        ("seed", -1, ValueError, r"between 0 and 2\*\*64 - 1, got -1"),
        ("seed", 2**64, ValueError, r"between 0 and 2\*\*64 - 1"),
        ("seed", 1.0, TypeError, "an int, got float"),
        ("seed", True, TypeError, "an int, got bool"),
        ("seed", None, TypeError, "an int, got NoneType"),
    ):
        with pytest.raises(error, match=f"^{argument} must be .*{reason}"):
            kind(**{argument: value})


@pytest.mark.parametrize(
    ("direction", "reason"),
    [
        (torch.arange(3), "has dtype int64"),
        (torch.ones(3) * 1j, "has dtype complex64"),
        (torch.ones(3).to_sparse(), "is sparse .*sparse=False"),
        ([1.0, 2.0, 3.0], "must be a torch.Tensor, got list"),
    ],
)
def test_directions_without_signs_are_named(direction, reason):
    for like in (None, [torch.zeros(3)] * 2):
        with pytest.raises(TypeError, match=rf"^directions\[1\] {reason}"):
            MajorityVote()([torch.zeros(3), direction], like)


@pytest.mark.parametrize(
    ("directions", "like", "reason"),
    [
        ([None], None, "directions holds None.*pass the parameters as `like`"),
        ([None], [torch.zeros(1)] * 2, "directions has 1 tensors, like has 2"),
        (
            [None, torch.zeros(2, 3)],
            [torch.zeros(1), torch.zeros(3, 2)],
            r"directions\[1\] has shape \(2, 3\), like\[1\] has \(3, 2\)",
        ),
        (
            [torch.zeros(1), torch.zeros(1, device="meta")],
            None,
            "one device, got cpu, meta",
        ),
        (
            [torch.zeros(1, device="meta")],
            [torch.zeros(1)],
            r"directions\[0\] is on meta, the vote is on cpu",
        ),
    ],
)
def test_directions_that_do_not_fit_together(directions, like, reason):
    vote = MajorityVote()
    with pytest.raises(ValueError, match=reason):
        vote(directions, like)
    assert vote.step == 0


# -- ranks that disagree --------------------------------------------------------------------------


def disagree(rank):
    """The error of each attempt, in one process group; rank 2 differs from the others."""
    odd = rank == 2
    same = [torch.ones(5), torch.ones(3)]
    late = MajorityVote()
    late(same)

    def skipped_a_step():
        late.step += odd
        late(same)

    def resumed_alone():
        vote = MajorityVote()
        vote.step = 10 * odd
        vote(same)

    attempts = {
        "shape": lambda: MajorityVote()([torch.ones(5), torch.ones(4 if odd else 3)]),
        "number": lambda: MajorityVote()(same[: 1 + odd]),
        "order": lambda: MajorityVote()(same[::-1] if odd else same),
        "ties": lambda: MajorityVote(ties="zero" if odd else "random")(same),
        "zeros": lambda: MajorityVote(zeros="random" if odd else "abstain")(same),
        "seed": lambda: MajorityVote(seed=int(odd))(same),
        "first step": resumed_alone,
        "later step": skipped_a_step,
        "device": lambda: MajorityVote()([torch.ones(5, device="meta")]),
    }
    errors = {}
    for name, attempt in attempts.items():
        try:
            attempt()
        except (RuntimeError, ValueError) as error:
            errors[name] = f"{type(error).__name__}: {error}"
    return errors, outcome_of(MajorityVote()(random(rank, 0), parameters()))


@pytest.fixture(scope="module")
def disagreed():
    return run_workers(disagree, 3)


@pytest.mark.parametrize("case", ["shape", "number", "order", "ties", "zeros", "seed", "first step"])
def test_the_first_vote_finds_ranks_that_differ(disagreed, case):
    for errors, _ in disagreed:
        message = errors[case]
        assert message.startswith("RuntimeError: the ranks do not vote on the same tensors by the same rules")
        *_, first, second, odd = message.splitlines()
        assert first.split(":")[1] == second.split(":")[1] != odd.split(":")[1]
        assert "rank 2" in odd


def test_every_vote_finds_ranks_at_different_steps(disagreed):
    for rank, (errors, _) in enumerate(disagreed):
        theirs, mine = ("rank 0 is at step 1", "step 2") if rank == 2 else ("rank 2 is at step 2", "step 1")
        assert f"RuntimeError: {theirs} where this rank is at {mine}" in errors["later step"]


def test_tensors_that_the_backend_cannot_exchange(disagreed):
    for errors, _ in disagreed:
        assert "ValueError: process_group cannot exchange tensors on 'meta'" in errors["device"]


def test_the_group_is_as_good_as_new_afterwards(disagreed):
    expected = expected_outcome([random(rank, 0) for rank in range(3)], 0)
    assert all(outcome == expected for _, outcome in disagreed)


def abandoned(rank, how):
    """The error of the vote after one that was begun and not ended."""
    vote, like = MajorityVote(bucket_parameters=64), [torch.zeros(64)] * 6
    vote(like, like)
    if how == "left open":
        begun = vote.open(like)
        for index in range(3):
            begun.put(index, torch.ones(64))
    else:
        with pytest.raises(KeyError):
            vote((like[index] if index < 3 else {}["x"] for index in range(6)), like)
    with pytest.raises(RuntimeError, match="the last vote has begun and was not ended"):
        vote(like, like)
    return True


@pytest.mark.parametrize("how", ["left open", "directions fail"])
def test_a_vote_after_one_that_was_not_ended_is_refused(how):
    assert all(run_workers(abandoned, 2, how))
