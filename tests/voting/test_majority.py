from __future__ import annotations

import math
import pickle
from dataclasses import asdict

import pytest
import torch
import torch.distributed as dist

from lightning_signvr.voting import LocalVote, MajorityVote
from tests.voting.oracle import (
    ALL_RULES,
    SHAPES,
    STORY,
    Outcome,
    expected_outcome,
    few_zeros,
    many_zeros,
    outcome_of,
    parameters,
    random,
    tied,
)
from tests.workers import run_workers

WORKERS = (1, 2, 3, 4)
SEED = 2**64 - 3


def tell(vote, rank, story=STORY):
    """Outcome of each step of the story."""
    return [outcome_of(vote(make(rank, step), parameters())) for step, make in enumerate(story)]


def play(rank):
    """Everything that the tests below look at, in one process group."""
    results = {tuple(rules.values()): tell(MajorityVote(seed=SEED, **rules), rank) for rules in ALL_RULES}
    results["again"] = tell(MajorityVote(seed=SEED), rank)
    results["other seed"] = tell(MajorityVote(seed=1), rank)
    results["identical"] = tell(MajorityVote(seed=SEED), 0)
    results["local"] = tell(LocalVote(seed=SEED), rank)
    results["interleaved"] = interleave(rank)
    results["rates"] = rates(rank)
    results["subgroup"] = subgroup(rank)
    results["exact fit"] = exact_fit()
    results["no tensors"] = outcome_of(MajorityVote()([]))
    return results


def interleave(rank):
    """Five layouts in turns, one more than are kept, each with its own abstentions."""
    vote, outcomes = MajorityVote(), []
    for step in range(12):
        numel = 8 + step % 5
        direction = torch.arange(numel) - 3.0 - rank
        outcomes.append(vote([direction]).signs(0).tolist())
    return outcomes


def rates(rank):
    vote = MajorityVote(ties="zero")
    voted = vote(many_zeros(rank, 0), parameters())
    return voted.agreement, voted.tie_rate, voted.abstain_rate


def exact_fit():
    """Votes counted in a plane without a byte to spare, but with padding in the last one."""
    return MajorityVote()([torch.ones(64 * dist.get_world_size() - 3)]).counts.votes


def subgroup(rank):
    """Ranks 0 and 2 of three vote; the one in between does not."""
    if dist.get_world_size() != 3:
        return None
    group = dist.new_group([0, 2])
    if rank == 1:
        try:
            MajorityVote(group)
        except ValueError as error:
            return str(error)
        return None
    vote = MajorityVote(group)
    return vote.workers, tell(vote, dist.get_rank(group))


@pytest.fixture(scope="module", params=WORKERS)
def played(request):
    """Results of all ranks, for each number of workers."""
    return run_workers(play, request.param)


def expected_story(workers, story=STORY, **rules):
    return [
        expected_outcome([make(worker, step) for worker in range(workers)], step, **rules)
        for step, make in enumerate(story)
    ]


@pytest.mark.parametrize("rules", ALL_RULES, ids=lambda rules: "-".join(rules.values()))
def test_votes_equal_the_oracle_on_every_rank(played, rules):
    expected = expected_story(len(played), seed=SEED, **rules)
    for results in played:
        for step, (outcome, wanted) in enumerate(zip(results[tuple(rules.values())], expected, strict=True)):
            assert outcome == wanted, (STORY[step].__name__, step)


def test_same_seed_same_votes(played):
    for results in played:
        assert results["again"] == results["random", "abstain"]


def test_another_seed_tosses_other_coins(played):
    expected = expected_story(len(played), seed=1)
    coins_matter = len(played) > 1  # or nothing is ever tied
    for results in played:
        assert results["other seed"] == expected
        assert (results["other seed"] != results["again"]) == coins_matter


def test_identical_workers_equal_one(played):
    alone = expected_story(1, seed=SEED)
    for results in played:
        for outcome, wanted in zip(results["identical"], alone, strict=True):
            assert outcome.signs == wanted.signs
            assert outcome.margin == outcome.votes == wanted.votes * len(played)
            assert outcome.ties == 0
            assert outcome.silent == wanted.silent


def test_local_vote_is_each_workers_own_sign(played):
    for rank, results in enumerate(played):
        assert results["local"] == [
            expected_outcome([make(rank, step)], step, seed=SEED) for step, make in enumerate(STORY)
        ]


def test_layouts_do_not_disturb_each_other(played):
    workers = range(len(played))
    for results in played:
        for step, signs in enumerate(results["interleaved"]):
            for coordinate, sign in enumerate(signs):
                total = sum(
                    math.copysign(1, coordinate - 3 - rank) * (coordinate != 3 + rank) for rank in workers
                )
                assert total == 0 or sign == math.copysign(1, total), step


def test_rates_follow_from_the_counts(played):
    expected = expected_outcome([many_zeros(worker, 0) for worker in range(len(played))], 0, ties="zero")
    numel = sum(torch.Size(shape).numel() for shape in SHAPES)
    for results in played:
        agreement, tie_rate, abstain_rate = results["rates"]
        assert agreement == expected.margin / expected.votes
        assert tie_rate == expected.ties / numel
        assert abstain_rate == pytest.approx(1 - expected.votes / (numel * len(played)))
        assert 0.5 < abstain_rate < 0.7  # the input is what it should be


def test_padding_is_not_counted(played):
    for results in played:
        assert results["exact fit"] == len(played) * (64 * len(played) - 3)


def test_no_tensors_no_outcome(played):
    assert all(results["no tensors"] == Outcome([], []) for results in played)


def test_a_subgroup_votes_alone(played):
    if len(played) != 3:
        assert all(results["subgroup"] is None for results in played)
        return
    first, between, last = (results["subgroup"] for results in played)
    assert first == last == (2, expected_story(2))
    assert "process_group does not contain this rank" in between


# -- without a process group ----------------------------------------------------------------------


def test_a_lone_worker_follows_its_own_sign_and_sends_nothing():
    vote = MajorityVote(ties="zero", seed=SEED)
    assert tell(vote, 0) == expected_story(1, ties="zero", seed=SEED)
    assert vote.workers == 1
    assert (vote.traffic.bytes_sent, vote.traffic.bytes_received, vote.traffic.collectives) == (0, 0, 0)
    assert vote.traffic.seconds.keys() == {"pack"}  # nothing to count


def test_add_to_moves_what_was_voted_on_and_only_that():
    directions = [torch.tensor([-1.0, 0.0, 2.0]), None]
    voted = MajorityVote()(directions, [torch.zeros(3), torch.zeros(2)])
    target, absent = torch.tensor([1.0, -0.0, 1.0]), torch.ones(2)
    assert voted.add_to_(0, target, alpha=-0.5, decay=0.5) is target
    assert target.tolist() == [1.0, 0.0, 0.0]
    assert math.copysign(1, target[1]) == -1
    assert voted.add_to_(1, absent, alpha=-0.5, decay=0.5).tolist() == [1.0, 1.0]
    assert voted.signs(1, torch.bfloat16).dtype == torch.bfloat16
    assert voted.present == [True, False]


@pytest.mark.parametrize("directions", [[], [torch.zeros(0)]])
def test_a_vote_on_nothing(directions):
    voted = MajorityVote()(directions)
    assert math.isnan(voted.agreement)
    assert voted.tie_rate == voted.abstain_rate == 0
    assert asdict(voted.counts) == {"votes": 0, "margin": 0, "ties": 0, "silent": 0}


def test_the_step_counts_and_keys_the_coins():
    vote = MajorityVote(zeros="random")
    zeros = [torch.zeros(64)]
    first, second = (vote(zeros).signs(0) for _ in range(2))
    assert not torch.equal(first, second)
    assert vote.step == 2
    assert vote.last is not None
    vote.step = 0
    assert torch.equal(vote(zeros).signs(0), first)


def test_a_vote_survives_pickling():
    vote = MajorityVote(ties="zero", seed=5)
    tell(vote, 0, [random, few_zeros])
    copy = pickle.loads(pickle.dumps(vote))
    assert repr(copy) == repr(vote)
    assert copy.step == vote.step == 2
    assert outcome_of(copy(tied(0, 2), parameters())) == outcome_of(vote(tied(0, 2), parameters()))
