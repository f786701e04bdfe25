"""The exact proximal operator of the total variation of a sequence: the taut string.

``argmin_u radius * sum |u_{i+1} - u_i| + ||u - y||^2 / 2`` are the slopes of the shortest path from start
to end of the running sums of ``y`` that stays within ``radius`` of them (Davies and Kovac, Annals of
Statistics 2001). The path is found with the funnel algorithm in time linear in the length of ``y``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple


class Knot(NamedTuple):
    """A point where the string may touch the tube: ``offset`` above the running sum."""

    position: int
    height: float
    offset: float


def _slope(start: Knot, end: Knot) -> float:
    return (end.height - start.height) / (end.position - start.position)


def _taut_string(sums: Sequence[float], radius: float) -> list[Knot]:
    """The knots of the shortest path through ``[sums - radius, sums + radius]``, its ends fixed.

    From the last knot that is certain, the apex, ``ceiling`` is the tightest convex chain below the upper
    bounds seen so far and ``floor`` the tightest concave chain above the lower ones. Once a new bound cuts
    the opposite chain, the path has to go around the first knot of that chain: it is the next apex.
    """
    end = len(sums) - 1
    path = [Knot(0, sums[0], 0.0)]
    ceiling, floor = deque(path), deque(path)
    for position in range(1, end + 1):
        for side, chain, opposite in ((1.0, ceiling, floor), (-1.0, floor, ceiling)):
            offset = side * radius if position < end else 0.0
            knot = Knot(position, sums[position] + offset, offset)
            while len(chain) > 1 and side * (_slope(chain[-2], chain[-1]) - _slope(chain[-1], knot)) >= 0:
                chain.pop()
            if len(chain) == 1:
                apex = chain[0]
                while len(opposite) > 1 and side * (_slope(apex, opposite[1]) - _slope(apex, knot)) > 0:
                    opposite.popleft()
                    apex = chain[0] = opposite[0]
                    path.append(apex)
            chain.append(knot)
    return [*path, ceiling[-1]]


def denoise(y: Sequence[float], radius: float) -> list[float]:
    """``argmin_u radius * sum |u_{i+1} - u_i| + ||u - y||^2 / 2``; NaN throughout if ``y`` is not finite.

    Example:
        >>> denoise([0.0, 0.0, 6.0, 6.0], radius=2.0)
        [1.0, 1.0, 5.0, 5.0]
    """
    if len(y) < 2 or not all(map(math.isfinite, y)):
        return list(y) if len(y) < 2 else [math.nan] * len(y)
    centre = math.fsum(y) / len(y)  # keeps the running sums small
    knots = _taut_string(list(accumulate((each - centre for each in y), initial=0.0)), radius)
    result: list[float] = []
    for start, end in pairwise(knots):
        length = end.position - start.position
        # the slope of the string, from the values themselves rather than from rounded running sums
        level = (math.fsum(y[start.position : end.position]) + end.offset - start.offset) / length
        result += [level] * length
    return result
