"""The link speed at which two ways to exchange take equally long."""

from __future__ import annotations

import math
from dataclasses import replace

from lightning_signvr.planner.cost import Problem, predict
from lightning_signvr.planner.figures import Link

SLOWEST, FASTEST = 1e2, 1e13
"""Bytes per second between which is searched."""


def at_speed(problem: Problem, bytes_per_second: float) -> Problem:
    """The same problem with another link speed between nodes; all-reduces speed up in proportion."""
    old = problem.cluster.link
    link = Link(bytes_per_second, old.latency, old.reduce_rate * bytes_per_second / old.bytes_per_second)
    return replace(problem, cluster=replace(problem.cluster, link=link))


def break_even(problem: Problem, other: str, factor: float = 1.0) -> float:
    """Bytes per second of the link between nodes at which the vote is ``factor`` times as fast as ``other``.

    On slower links it is faster than that, on faster ones slower.

    Args:
        problem: what is planned.
        other: name of a prediction.
        factor: 1 for equally fast.

    Returns:
        The speed; ``inf`` where the vote is that fast at any speed, 0 where not even on a very slow link.

    Example:
        >>> from lightning_signvr.planner import METHODS, Cluster
        >>> problem = Problem([(5000, 5000)], Cluster(2, Link(125e6, 1e-4)), 0.5, METHODS["SSVR"])
        >>> print(f"{break_even(problem, 'fp32') * 8e-9:.2f} Gbit/s")
        1.48 Gbit/s
    """

    def lead(speed: float) -> float:
        predictions = predict(at_speed(problem, speed))
        return predictions[other].seconds - factor * predictions["vote"].seconds

    low, high = SLOWEST, FASTEST
    if lead(low) <= 0:
        return 0.0
    if lead(high) > 0:
        return math.inf
    while high / low > 1 + 1e-9:
        middle = math.sqrt(low * high)
        if lead(middle) > 0:
            low = middle
        else:
            high = middle
    return low
