"""What torchmetrics promises of any metric, in one process."""

from __future__ import annotations

import io
import math
import pickle
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lightning_signvr import MajorityVote
from lightning_signvr.metrics import (
    AbstainRate,
    CommunicationSavings,
    FlipRate,
    GradientNorm,
    SignAgreement,
    TieRate,
    VoteMargin,
    WorkerAgreement,
)
from lightning_signvr.voting import LocalVote, VotedSigns

GROUPS = {"first": [0], "others": [1, 2]}
METRICS: dict[str, tuple[type[Metric], dict[str, Any]]] = {
    "agreement": (SignAgreement, {}),
    "agreement of groups": (SignAgreement, {"groups": GROUPS}),
    "ties": (TieRate, {}),
    "abstentions": (AbstainRate, {"groups": GROUPS}),
    "flips": (FlipRate, {}),
    "margins": (VoteMargin, {}),
    "workers": (WorkerAgreement, {}),
    "traffic": (CommunicationSavings, {}),
    "norm": (GradientNorm, {"norm": 1}),
}


class Source:
    """Votes of a lone worker, and how each kind of metric is updated with them."""

    def __init__(self) -> None:
        self.vote = MajorityVote()
        self.vote.detailed = True
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, *metrics: Metric) -> None:
        for metric in metrics:
            if isinstance(metric, CommunicationSavings):
                metric.update(self.vote)  # to look at its counters
        gradients = [torch.randn(size, generator=self.generator) for size in (9, 4, 3)]
        gradients[0][::4] = 0
        arguments = {"votes": self.vote(gradients), "vote": self.vote, "gradients": gradients}
        self.vote.traffic.bytes_sent += 7  # which a lone worker does not send
        for metric in metrics:
            metric.update(**metric._filter_kwargs(**arguments))


def make(name: str) -> Metric:
    kind, options = METRICS[name]
    return kind(**options)


def values(metric: Metric) -> list[float]:
    value = metric.compute()
    tensors = value.values() if isinstance(value, dict) else [value]
    return torch.cat([tensor.double().flatten() for tensor in tensors]).tolist()


def assert_same(states: dict[str, Any], others: dict[str, Any]) -> None:
    torch.testing.assert_close(states, others, rtol=0, atol=0)  # dtypes, too


@pytest.fixture(params=METRICS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_nan_before_the_first_update(name: str) -> None:
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        found = values(make(name))
    assert all(math.isnan(value) for value in found if value != 0)  # 0 bytes were sent
    assert math.isnan(found[0])


def test_reset(name: str) -> None:
    metric, fresh, source = make(name), make(name), Source()
    source(metric)
    source(*([metric, fresh] if name == "flips" else [metric]))  # whose last vote is kept
    metric.reset()
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert math.isnan(values(metric)[0])
    source(metric, fresh)
    assert values(metric) == values(fresh)


@pytest.mark.parametrize("how", ["pickle", "clone", "state_dict"])
def test_copies_go_on(name: str, how: str) -> None:
    metric, source = make(name), Source()
    source(metric)
    source(metric)
    if how == "pickle":
        copy = pickle.loads(pickle.dumps(metric))
    elif how == "clone":
        copy = metric.clone()
    else:
        copy = make(name)
        for each in (metric, copy):
            each.persistent(True)
        file = io.BytesIO()
        torch.save(metric.state_dict(), file)
        file.seek(0)
        copy.load_state_dict(torch.load(file))
    assert_same(copy.metric_state, metric.metric_state)
    if how != "state_dict":  # which does not hold FlipRate's last vote
        source(metric, copy)
        assert values(copy) == values(metric)


def test_sums_stay_exact_in_half_precision(name: str) -> None:
    metric, source = make(name), Source()
    source(metric)
    source(metric)
    exact = {key: state.clone() for key, state in metric.metric_state.items()}
    torch.nn.ModuleList([metric]).to(torch.bfloat16)
    metric.set_dtype(torch.float16)
    assert_same(metric.metric_state, exact)
    result = metric.compute()
    assert (next(iter(result.values())) if isinstance(result, dict) else result).dtype == torch.float16
    metric.reset()
    source(metric)
    assert all(metric.metric_state[key].dtype == state.dtype for key, state in exact.items())


def test_long_runs_lose_no_counts() -> None:
    metric = SignAgreement()
    votes = MajorityVote()([torch.ones(3)])
    metric.update(votes)
    metric.agreement_votes += 2**40
    metric.agreement_margin += 2**40 - 3
    metric.update(votes)
    assert metric.agreement_votes.item() - metric.agreement_margin.item() == 3


def test_a_collection_does_not_mix_metrics_that_happen_to_be_equal() -> None:
    zero = {
        "votes": {"agreement": SignAgreement(), "ties": TieRate(), "abstentions": AbstainRate()},
        "gradients": {str(norm): GradientNorm(norm) for norm in (1, 2, math.inf)},
    }
    votes, norms = (MetricCollection(metrics) for metrics in zero.values())
    vote = MajorityVote()
    votes.update(vote([torch.ones(4)]))
    votes.update(vote([torch.tensor([1.0, 0.0, 0.0, 0.0])]))
    assert {key: value.item() for key, value in votes.compute().items()} == {
        "agreement": 1.0, "ties": 0.0, "abstentions": 0.375,
    }  # fmt: skip
    norms.update([torch.zeros(2)])
    norms.update([torch.tensor([3.0, -4.0])])
    assert {key: value.item() for key, value in norms.compute().items()} == {"1": 3.5, "2": 2.5, "inf": 2.0}


# -- plots ----------------------------------------------------------------------------------------


def test_plot_writes_a_figure(name: str) -> None:
    pyplot = pytest.importorskip("matplotlib").pyplot
    metric, source = make(name), Source()
    source(metric)
    source(metric)
    figure, axes = metric.plot()
    file = io.BytesIO()
    figure.savefig(file)
    assert file.getvalue().startswith(b"\x89PNG")
    history = [metric.compute()] * 3
    nothing, same = metric.plot(history, axes)
    assert nothing is None
    assert same is axes
    pyplot.close(figure)


def test_margins_are_bars() -> None:
    pyplot = pytest.importorskip("matplotlib").pyplot
    figure, axes = VoteMargin().plot(torch.tensor([0.25, 0.0, 0.75]))
    assert [bar.get_height() for bar in axes.patches] == [0.25, 0.0, 0.75]
    assert list(axes.get_xticks()) == [0, 1, 2]
    pyplot.close(figure)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ModuleNotFoundError, match="pip install matplotlib"):
        VoteMargin().plot(torch.tensor([0.25, 0.75]))


# -- gradient norms -------------------------------------------------------------------------------


def reference(gradients: list[Tensor], norm: float) -> float:
    return float(np.linalg.norm(np.concatenate([g.double().flatten().numpy() for g in gradients]), norm))


@pytest.mark.parametrize("norm", [1, 2, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_norms_of_large_gradients_are_not_rounded(norm: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gradients = [torch.randn(1500, 1000).to(dtype), torch.randn(5), torch.empty(0)]
    metric = GradientNorm(norm)
    metric.set_dtype(torch.float64)
    assert metric(gradients).item() == pytest.approx(reference(gradients, norm), rel=1e-5)


def test_gradients_of_parameters() -> None:
    model = torch.nn.Linear(2, 1)
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    plain = torch.ones(2, requires_grad=True)
    frozen = torch.nn.Parameter(torch.ones(9), requires_grad=False)
    (model(embedding(torch.tensor([1, 1]))).sum() + 3 * plain.sum()).backward()
    model.bias.grad = None
    parameters = [*model.parameters(), *embedding.parameters(), plain, frozen]
    gradients = [model.weight.grad, embedding.weight.grad.to_dense(), plain.grad]
    assert GradientNorm()(iter(parameters)).item() == pytest.approx(reference(gradients, 2))
    assert GradientNorm()([None, *gradients]).item() == pytest.approx(reference(gradients, 2))
    assert GradientNorm()([None]).item() == 0


# -- traffic --------------------------------------------------------------------------------------


def test_traffic_of_several_votes_is_added_up() -> None:
    """Counters are set by hand: a lone worker sends nothing."""
    savings, votes = CommunicationSavings(), [MajorityVote(), MajorityVote()]
    for number, vote in enumerate(votes):
        vote.traffic.bytes_sent = 1000  # before the metric was there
        vote([torch.ones(8)])
        savings.update(vote)
        for _ in range(2 + number):
            vote([torch.ones(8)])
            vote.traffic.bytes_sent += 10
    for vote in votes:
        savings.update(vote)
        savings.update(vote)
    found = savings.compute()
    assert (found["bytes_sent"], found["bits_per_parameter"]) == (50, 10)
    votes[0].step = 0  # as after a checkpoint
    savings.update(votes[0])
    assert savings.compute()["bytes_sent"] == 50


# -- bad input ------------------------------------------------------------------------------------


def voted(detailed: bool) -> VotedSigns:
    vote = LocalVote()
    vote.detailed = detailed
    return vote([torch.ones(2), torch.ones(3)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": {"a": []}}, r"groups\['a'\].*at least one.*got \(\)"),
        ({"groups": {"a": [0, -1]}}, r"groups\['a'\].*negative.*got \(0, -1\)"),
        ({"groups": {"a": [1, 1]}}, r"groups\['a'\].*each once.*got \(1, 1\)"),
        ({"groups": {"total": [1]}}, r"groups\['total'\].*choose another name"),
    ],
)
def test_bad_groups(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TieRate(**options)


@pytest.mark.parametrize("kind", [VoteMargin, WorkerAgreement])
def test_missing_details(kind: type[Metric]) -> None:
    with pytest.raises(ValueError, match=rf"{kind.__name__} needs.*vote\.detailed = True"):
        kind().update(voted(detailed=False))


def test_groups_need_details_and_tensors() -> None:
    with pytest.raises(ValueError, match=r"AbstainRate\(groups=...\) needs.*vote\.detailed = True"):
        AbstainRate({"a": [0]}).update(voted(detailed=False))
    with pytest.raises(ValueError, match=r"groups\['b'\] has tensor 2, but the vote has 2 tensors"):
        AbstainRate({"a": [0], "b": [0, 2]}).update(voted(detailed=True))


def test_what_is_not_a_vote(name: str) -> None:
    if name == "norm":
        with pytest.raises(ValueError, match="gradients is empty"):
            GradientNorm().update(iter([]))
        with pytest.raises(ValueError, match="norm must be 1, 2"):
            GradientNorm(3)
    else:
        wrong = "vote must be the vote itself" if name == "traffic" else "votes must be what a vote returned"
        with pytest.raises(TypeError, match=f"{wrong}.*got NoneType"):
            make(name).update(None)


@pytest.mark.parametrize("kind", [FlipRate, CommunicationSavings])
def test_sync_on_step_is_refused(kind: type[Metric]) -> None:
    with pytest.raises(ValueError, match="dist_sync_on_step"):
        kind(dist_sync_on_step=True)


@pytest.mark.parametrize(("kind", "state", "size"), [
    (VoteMargin, "margins", 4), (WorkerAgreement, "agreeing_and_cast", 6),
])  # fmt: skip
def test_another_number_of_workers(kind: type[Metric], state: str, size: int) -> None:
    metric = kind()
    setattr(metric, state, torch.ones(size, dtype=torch.int64))  # as from a checkpoint
    with pytest.raises(ValueError, match="of 3 workers, and votes is of 1"):
        metric.update(voted(detailed=True))
