"""A plain sentence: do it, or don't, and what the time goes to."""

from __future__ import annotations

import math

from lightning_signvr.planner.breakeven import break_even
from lightning_signvr.planner.cost import Prediction, Problem
from lightning_signvr.planner.units import format_rate, format_seconds

WORTHWHILE = 1.1
"""Speed-up below which nobody should change an optimizer for it."""


def advise(problem: Problem, predictions: dict[str, Prediction]) -> str:
    """One paragraph that begins with "Use" or "Don't use".

    Args:
        problem: what was planned.
        predictions: of :func:`~lightning_signvr.planner.predict`.
    """
    vote, fp32, bf16 = (predictions[name] for name in ("vote", "fp32", "bf16"))
    if problem.cluster.workers == 1:
        return "Don't use it for speed: a single worker exchanges nothing."
    over_fp32, over_bf16 = fp32.seconds / vote.seconds, bf16.seconds / vote.seconds
    if over_fp32 < WORTHWHILE:
        sentences = [
            f"Don't use it for speed: a step would take {_compared(vote, fp32)}.",
            _dominant("Its", vote),
        ]
        if fp32.exchange < 0.1 * fp32.seconds:
            sentences.append(
                f"There is little to save: with fp32, {format_seconds(fp32.exchange)} of a step are spent "
                "waiting for the exchange."
            )
    elif over_bf16 < WORTHWHILE:
        sentences = [
            f"Don't use it for speed: it would take {_compared(vote, fp32)}, but bf16 all-reduce takes "
            f"{format_seconds(bf16.seconds)}, and leaves the optimizer as it is.",
            _dominant("Its", vote),
        ]
    else:
        sentences = [
            f"Use it: a step would take {_compared(vote, fp32)}, and {over_bf16:.2g} times as fast as bf16.",
            _dominant("Its", vote),
        ]
    if over_fp32 >= WORTHWHILE and predictions["powersgd"].seconds * WORTHWHILE < vote.seconds:
        low_rank = predictions["powersgd"]
        sentences.append(f"{low_rank.name} would be faster still, {format_seconds(low_rank.seconds)} a step.")
    hierarchical = predictions.get("hierarchical")
    if hierarchical is not None and hierarchical.seconds * WORTHWHILE < vote.seconds:
        sentences.append(
            f'With voters="node" the vote would take {format_seconds(hierarchical.seconds)} a step.'
        )
    if problem.method.gradients > 1:
        sentences.append(
            f"The optimizer computes {problem.method.gradients} gradients per step; Signum computes one."
        )
    return " ".join(sentences)


def explain_break_even(problem: Problem, other: str, label: str) -> str:
    """At which speed of the link between nodes the vote is as fast as ``other``."""
    if problem.cluster.nodes == 1:
        return f"against {label}: all workers are on one node, the link is not used"
    speed, worthwhile = break_even(problem, other), break_even(problem, other, WORTHWHILE)
    if speed == 0:
        return f"against {label}: none, the sign vote is slower even on slow links"
    equal = "none, the sign vote is faster at any speed" if math.isinf(speed) else format_rate(speed)
    if not 0 < worthwhile < math.inf:
        return f"against {label}: {equal}"
    return f"against {label}: {equal}; {WORTHWHILE - 1:.0%} faster below {format_rate(worthwhile)}"


def _compared(vote: Prediction, fp32: Prediction) -> str:
    ratio = fp32.seconds / vote.seconds
    how = f"{ratio:.2g} times as fast" if ratio >= 1 else f"{1 / ratio:.2g} times as long"
    return f"{format_seconds(vote.seconds)} instead of {format_seconds(fp32.seconds)} with fp32, {how}"


def _dominant(whose: str, prediction: Prediction) -> str:
    """What most of a step is spent on."""
    parts = {
        "forward and backward": prediction.compute,
        "packing, counting and applying signs": prediction.local,
        "the exchange": prediction.exchange,
    }
    name = max(parts, key=lambda part: parts[part])
    share = f"{parts[name] / prediction.seconds:.0%}"
    verb = "is" if name == "the exchange" else "are"
    return f"{whose} largest part {verb} {name}, {share} of the step.".replace("part are", "part is")
