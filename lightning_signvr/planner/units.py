"""Numbers with units: how people write them, and how the planner prints them."""

from __future__ import annotations

import math
import re

_COUNT = re.compile(r"([\d_]+(?:\.\d+)?(?:e\+?\d+)?)\s*([kKMBGT]?)")
_RATE = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*([kKMGT]?)(bit|b|B)(?:/s|ps)")
_TIME = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*(s|ms|us|µs|ns)")
_THOUSANDS = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def parse_count(text: str) -> int:
    """A whole number above 0, also with k, M, B (or G) or T behind it.

    Raises:
        ValueError: it is something else.

    Example:
        >>> parse_count("25.6M"), parse_count("124_000_000")
        (25600000, 124000000)
    """
    match = _COUNT.fullmatch(text.strip())
    if match:
        value = float(match[1].replace("_", "")) * _THOUSANDS[match[2]]
        if value >= 1 and math.isfinite(value) and abs(value - round(value)) < 1e-6 * value:
            return round(value)
    raise ValueError(f"{text!r} is not a whole number above 0 such as 1000, 25.6M or 1.3B")


def parse_rate(text: str) -> float:
    """Bytes per second from a link speed in bits or bytes per second.

    Raises:
        ValueError: it is something else, or 0.

    Example:
        >>> parse_rate("1Gbit/s"), parse_rate("125 MB/s"), parse_rate("100Mbps")
        (125000000.0, 125000000.0, 12500000.0)
    """
    match = _RATE.fullmatch(text.strip())
    value = 0.0
    if match:
        value = float(match[1]) * _THOUSANDS[match[2]] / (1 if match[3] == "B" else 8)
    if not 0 < value < math.inf:
        raise ValueError(
            f"{text!r} is not a link speed above 0 such as 100Mbit/s, 2.5Gbit/s (b or bit: bits) or "
            "125MB/s (B: bytes)"
        )
    return value


def parse_seconds(text: str) -> float:
    """Seconds from a time of at least 0 with its unit.

    Raises:
        ValueError: it is something else.

    Example:
        >>> parse_seconds("0.5ms"), parse_seconds("2 s")
        (0.0005, 2.0)
    """
    match = _TIME.fullmatch(text.strip())
    if not match or not math.isfinite(float(match[1])):
        raise ValueError(f"{text!r} is not a time with its unit such as 0.12s, 0.5ms or 20us")
    return float(match[1]) * _SECONDS[match[2]]


def parse_duration(text: str) -> float:
    """As :func:`parse_seconds`, but above 0."""
    seconds = parse_seconds(text)
    if seconds == 0:
        raise ValueError(f"{text!r} is not a time above 0")
    return seconds


def format_seconds(seconds: float) -> str:
    """Three digits and a unit.

    Example:
        >>> format_seconds(3.91), format_seconds(0.0415), format_seconds(2.5e-5)
        ('3.91 s', '41.5 ms', '25 us')
    """
    unit, size = next(((u, s) for u, s in (("s", 1.0), ("ms", 1e-3)) if seconds >= s), ("us", 1e-6))
    return f"{_three_digits(seconds / size)} {unit}"


def format_rate(bytes_per_second: float) -> str:
    """Bits per second.

    Example:
        >>> format_rate(125e6), format_rate(2.2e6)
        ('1 Gbit/s', '17.6 Mbit/s')
    """
    return _scaled(bytes_per_second * 8, "bit/s")


def format_bytes(count: float) -> str:
    """Bytes in decimal units.

    Example:
        >>> format_bytes(3.28e6), format_bytes(0)
        ('3.28 MB', '0 B')
    """
    return _scaled(count, "B")


def _scaled(value: float, unit: str) -> str:
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:
            return f"{_three_digits(value / size)} {prefix}{unit}"
    return f"{_three_digits(value)} {unit}"


def _three_digits(value: float) -> str:
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.3g}"
