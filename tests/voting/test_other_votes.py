"""Votes whose outcome is not a majority, and a closer look at any vote."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from lightning_signvr.signs import random_uniform
from lightning_signvr.voting import MajorityVote, MeanVote, ScaledMeanVote, StochasticVote, VotedSigns
from lightning_signvr.voting.rules import SERVER_STREAM
from tests.voting.oracle import SHAPES, few_zeros, many_zeros, missing, parameters, random, tied
from tests.workers import WorkerError, run_workers

WORKERS = (1, 2, 3, 4)
SEED = 5
STORY = (random, few_zeros, many_zeros, tied, missing, random)


def caught(rank):
    """Votes with abstentions before and after one that fails on all ranks."""
    vote, directions = MajorityVote(), [torch.tensor([1.0, 0.0, -1.0])]
    vote(directions, scales=[1.0])
    with pytest.raises(RuntimeError, match="scale that is negative or not finite"):
        vote([torch.tensor([0.0, -1.0, -1.0])], scales=[math.nan])
    voted = vote([torch.tensor([0.0, -1.0, -1.0])], scales=[1.0])
    return voted.signs(0).tolist(), voted.counts.votes


def tied_details(rank):
    """Details of a mean where half of an even electorate says +."""
    vote = MeanVote()
    vote.request_details()
    first = vote([torch.full((9,), (-1.0) ** rank)]).details
    return first.cast.tolist(), vote([torch.ones(9)]).details


def play(rank):
    results = {kind.__name__: tell(kind(seed=SEED), rank) for kind in (StochasticVote, MeanVote)}
    results["updates"] = updates(rank)
    results["bits"] = bits(rank)
    results["details"] = details(rank)
    results["scaled"] = scaled(rank)
    results["caught"] = caught(rank)
    results["tied details"] = tied_details(rank)
    results["scales"] = MajorityVote()([torch.ones(3)] * 2, scales=[rank + 0.5, 0.0]).scales
    return results


def tell(vote, rank):
    outcomes = []
    for step, make in enumerate(STORY):
        voted = vote(make(rank, step), parameters())
        values = [voted.values(index) for index in range(len(SHAPES))]
        assert all(torch.equal(voted.signs(index), value.sign()) for index, value in enumerate(values))
        outcomes.append((values, list(voted.present)))
    return outcomes


def updates(rank):
    """Parameters that a mean has moved, in two precisions."""
    voted = MeanVote()(few_zeros(rank, 0), parameters())
    targets = [torch.full((25, 40), 3.0, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    return [voted.add_to_(SHAPES.index((25, 40)), target, alpha=-0.5, decay=0.5) for target in targets]


def bits(rank):
    """Bits per parameter of a step, first without abstentions and then with."""
    vote, seen, size = MeanVote(), [0], 1 << 17
    for step in range(3):
        direction = torch.rand(size, generator=torch.Generator().manual_seed(8 * step + rank)) - 0.5
        direction[0] = 0 if step else 1
        vote([direction])
        seen.append(vote.traffic.bytes_sent)
    return [8 * (after - before) / size for before, after in pairwise(seen)]


def details(rank):
    vote = MajorityVote(ties="zero", seed=SEED)
    vote.detailed = True
    looks = []
    for step, make in enumerate(STORY):
        voted = vote(make(rank, step), parameters())
        signs = [voted.signs(index) for index in range(len(SHAPES))]
        look = voted.details
        looks.append((look.counts.tolist(), look.margins.tolist(), look.agreeing.tolist(),
                      look.cast.tolist(), signs, look.worker_agreement))  # fmt: skip
        assert look.counts_of(range(len(SHAPES))) == voted.counts
    vote.detailed = False
    assert vote(random(rank, 0), parameters()).details is None
    return looks


def scaled(rank):
    """Twice the mean of the scaled signs comes back as signs with the largest magnitude per piece."""
    vote = ScaledMeanVote()

    def server(index, elements, size, mean):
        return mean, float(mean.abs().max())

    directions = random(rank, 0)
    scales = [rank + 1.0 + index for index in range(len(SHAPES))]
    voted = vote.cast(directions, scales, server, parameters(), scaled_answer=True)
    values = [voted.values(index) for index in range(len(SHAPES))]
    target = torch.ones(25, 40)
    voted.add_to_(5, target, alpha=0.5, decay=0.5)
    return values, target, voted.answers


@pytest.fixture(scope="module", params=WORKERS)
def played(request):
    return request.param, run_workers(play, request.param)


def ballots_of(workers, make, step):
    """Signs of all workers, ``[workers, ...]`` per tensor, 0 for none."""
    everyones = [make(rank, step) for rank in range(workers)]
    return [
        torch.stack([torch.zeros(shape) if d[k] is None else d[k].sign() for d in everyones])
        for k, shape in enumerate(SHAPES)
    ]


def test_mean_vote_is_the_mean(played):
    workers, results = played
    for result in results:
        for step, (values, _) in enumerate(result["MeanVote"]):
            for value, ballots in zip(values, ballots_of(workers, STORY[step], step), strict=True):
                assert torch.equal(value, ballots.sum(0) / workers)


def test_mean_vote_moves_parameters_by_the_mean(played):
    workers, results = played
    mean = ballots_of(workers, few_zeros, 0)[5].sum(0) / workers
    for result in results:
        exact, rounded = result["updates"]
        assert torch.equal(exact, 0.5 * torch.full((25, 40), 3.0) - 0.5 * mean)
        torch.testing.assert_close(rounded.float(), exact, rtol=2**-8, atol=2**-8)


def test_mean_vote_sends_as_many_bits_as_it_needs(played):
    workers, results = played
    narrow, wide = workers.bit_length(), (2 * workers).bit_length()
    expected = [(workers - 1) / workers * (1 + down) for down in (narrow, wide, wide)]
    for result in results:
        assert result["bits"] == pytest.approx(expected, rel=0.02)


def test_stochastic_vote_draws_with_the_documented_numbers(played):
    workers, results = played
    for step, make in enumerate(STORY):
        for k, ballots in enumerate(ballots_of(workers, make, step)):
            noise = random_uniform(SEED, step, SERVER_STREAM, k, ballots[0].numel()).view(ballots[0].shape)
            sums = ballots.sum(0)
            expected = torch.where(ballots.abs().sum(0) == 0, 0.0, (sums + workers * noise).sign())
            for result in results:
                assert torch.equal(result["StochasticVote"][step][0][k], expected)


def test_stochastic_vote_is_unbiased():
    """3 workers of whom one says +: 1/3 of the outcomes are +, not none; here by the oracle's rule."""
    count = 100_000
    noise = random_uniform(1, 2, SERVER_STREAM, 0, count)
    share = ((3 * noise - 1) > 0).float().mean().item()
    assert share == pytest.approx(1 / 3, abs=4 * math.sqrt(2 / 9 / count))


def test_details_equal_counting_one_by_one(played):
    workers, results = played
    for step, make in enumerate(STORY):
        ballots = ballots_of(workers, make, step)
        for result in results:
            counts, margins, agreeing, cast, signs, agreement = result["details"][step]
            for k, votes in enumerate(ballots):
                difference, voters = votes.sum(0).abs().int(), votes.abs().sum(0).int()
                ties = int(((difference == 0) & (voters > 0)).sum())
                assert margins[k] == torch.bincount(difference.flatten(), minlength=workers + 1).tolist()
                expected = [voters.sum(), difference.sum(), ties, (voters == 0).sum()]
                assert counts[k] == [int(number) for number in expected]
            for rank in range(workers):
                pairs = list(zip(ballots, signs, strict=True))
                mine = sum(int(((v[rank] == s) & (v[rank] * s != 0)).sum()) for v, s in pairs)
                all_mine = sum(int((v[rank] * s != 0).sum()) for v, s in pairs)
                assert (agreeing[rank], cast[rank]) == (mine, all_mine)
                assert agreement[rank] == pytest.approx(
                    mine / all_mine if all_mine else math.nan, nan_ok=True
                )


def test_scaled_answers_come_back_with_their_signs(played):
    workers, results = played
    ballots = ballots_of(workers, random, 0)
    reference = None
    for values, target, answers in (result["scaled"] for result in results):
        reference = answers if reference is None else reference
        assert torch.equal(answers, reference)
        for k, votes in enumerate(ballots):
            factors = torch.tensor([rank + 1.0 + k for rank in range(workers)])
            mean = (votes * factors.view(-1, *[1] * (votes.dim() - 1))).sum(0) / workers
            torch.testing.assert_close(values[k].sign(), mean.sign())
            sizes = values[k].abs().unique()
            assert set(sizes[sizes > 0].tolist()) <= set(answers[:, k].tolist())
            if values[k].numel():
                assert answers[:, k].max().item() == pytest.approx(mean.abs().max().item(), rel=1e-5)
        assert torch.equal(target, 0.5 + 0.5 * values[5])


def test_scales_are_known_to_all(played):
    workers, results = played
    for result in results:
        assert result["scales"].tolist() == [[rank + 0.5, 0.0] for rank in range(workers)]


def test_a_vote_that_failed_does_not_spoil_the_next(played):
    workers, results = played
    assert all(result["caught"] == ([0.0, -1.0, -1.0], 2 * workers) for result in results)


def test_details_of_a_mean_count_no_vote_where_it_is_tied(played):
    workers, results = played
    for result in results:
        cast, afterwards = result["tied details"]
        assert cast == [0 if workers % 2 == 0 else 9] * workers
        assert afterwards is None  # they were requested for one vote


def test_a_lone_workers_mean_is_its_sign_with_details_and_without():
    for detailed in (False, True):
        vote = MeanVote()
        vote.detailed = detailed
        voted = vote([torch.tensor([-0.5, 0.0, 2.0])])
        assert type(voted) is VotedSigns
        assert voted.values(0).tolist() == [-1.0, 0.0, 1.0]


def ask_on_one_rank(rank):
    vote = MajorityVote()
    vote.detailed = rank == 1
    vote([torch.ones(3)])


def test_details_on_one_rank_alone_are_an_error():
    with pytest.raises(WorkerError, match="for the details of this vote and this rank"):
        run_workers(ask_on_one_rank, 2)
