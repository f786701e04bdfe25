"""From values to places on the page, and round numbers to write beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass

_MANY_POWERS = 1000  # of the largest to the smallest value, from which on only a logarithm shows both
_HARDLY = 0.01  # of the largest value


@dataclass(frozen=True)
class Axis:
    """A piece of the number line and where it is drawn.

    Attributes:
        ticks: round values; the first and the last are the ends.
        start, end: places of the ends.
        logarithmic: equal distances are equal ratios.
    """

    ticks: list[float]
    start: float
    end: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Where a value is drawn."""
        low, high = self.ticks[0], self.ticks[-1]
        if self.logarithmic:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def label(self, tick: float) -> str:
        """Text of a tick, with the digits that tell it from its neighbours.

        Example:
            >>> axis = linear_axis(0.52, 0.78, 200, 0, most_ticks=6)
            >>> [axis.label(tick) for tick in axis.ticks]
            ['0.50', '0.55', '0.60', '0.65', '0.70', '0.75', '0.80']
        """
        size = max(abs(self.ticks[0]), abs(self.ticks[-1]))
        if self.logarithmic or size >= 1e7 or size < 1e-3:
            return f"{tick:g}"
        if size >= 1e4:
            return f"{tick / 1e3:,.6g}k" if tick else "0"
        return f"{tick:,.{max(0, -math.floor(math.log10(self.ticks[1] - self.ticks[0])))}f}"


def linear_axis(low: float, high: float, start: float, end: float, most_ticks: int) -> Axis:
    """An axis from the round number below to the round number above.

    Example:
        >>> linear_axis(4, 299, 0, 100, most_ticks=5).ticks
        [0.0, 100.0, 200.0, 300.0]
    """
    if high - low < 1e-300:
        low, high = min(0.0, low), max(0.0, high)
    if high - low < 1e-300:
        high = 1.0
    distance = (high - low) / most_ticks
    power = math.floor(math.log10(distance))
    factor = next(factor for factor in (1, 2, 5, 10) if factor * 10.0**power >= distance * (1 - 1e-9))
    first, last = math.floor(low / (factor * 10.0**power)), math.ceil(high / (factor * 10.0**power))
    multiples = [index * factor for index in range(first, last + 1)]
    # a division by a power of ten rounds correctly, a product with its inverse does not
    ticks = [item * 10.0**power if power >= 0 else item / 10.0**-power for item in multiples]
    return Axis(ticks, start, end)


def value_axis(values: list[float], start: float, end: float, most_ticks: int) -> Axis:
    """A linear axis that finite values fill, with two exceptions.

    Values that hardly differ are shown above zero, so that noise does not look like a change. Positive
    values of very different sizes are shown on a logarithmic axis.

    Example:
        >>> value_axis([31.6, 31.8], 200, 0, most_ticks=5).ticks
        [0.0, 10.0, 20.0, 30.0, 40.0]
        >>> value_axis([0.001, 20.0], 200, 0, most_ticks=5).ticks
        [0.001, 0.01, 0.1, 1.0, 10.0, 100.0]
    """
    low, high = min(values), max(values)
    if low > 0 and high / low >= _MANY_POWERS:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        every = math.ceil((last - first) / most_ticks)
        powers = range(first, last + every, every)
        return Axis([10.0**power for power in powers], start, end, logarithmic=True)
    if high - low < _HARDLY * max(abs(low), abs(high)):
        low, high = min(0.0, low), max(0.0, high)
    return linear_axis(low, high, start, end, most_ticks)
