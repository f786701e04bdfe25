"""Numbers as people write them."""

from __future__ import annotations

import math
from datetime import datetime, timezone

_YEAR_10000 = 253_402_300_800


def plain(value: float) -> str:
    """Three or four digits, thousands separated.

    Example:
        >>> plain(31.8667), plain(19016.0), plain(0.00000123), plain(float("nan"))
        ('31.87', '19,016', '1.23e-06', 'not a number')
    """
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite"
    if value and not 0.01 <= abs(value) < 1e9:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def byte_count(count: float) -> str:
    """In decimal units.

    Example:
        >>> byte_count(5_704_800)
        '5.7 MB'
    """
    units = ["bytes", "kB", "MB", "GB", "TB", "PB"]
    power = min(len(units) - 1, int(math.log10(abs(count)) // 3)) if abs(count) >= 1 else 0
    return f"{count / 1000**power:.{1 if power else 0}f} {units[power]}"


def duration(seconds: float) -> str:
    """In the two largest units.

    Example:
        >>> duration(3.84), duration(754), duration(93_784)
        ('3.8 s', '12 min 34 s', '26 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def date(seconds: float) -> str:
    """Of a time in seconds since 1970; writers may have logged anything else as time.

    Example:
        >>> date(86_400.0), date(1.7e12)
        ('1970-01-02', 'unknown')
    """
    if not 0 <= seconds < _YEAR_10000:
        return "unknown"
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d}"
