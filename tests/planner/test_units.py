"""Numbers with units."""

from __future__ import annotations

import pytest

from lightning_signvr.planner.units import (
    format_bytes,
    format_rate,
    format_seconds,
    parse_count,
    parse_duration,
    parse_rate,
    parse_seconds,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("1_000", 1000),
        ("25.6M", 25_600_000),
        ("0.5k", 500),
        ("1.3B", 1_300_000_000),
        ("1.3G", 1_300_000_000),
        ("7e9", 7_000_000_000),
        (" 124M ", 124_000_000),
    ],
)
def test_counts(text: str, value: float) -> None:
    assert parse_count(text) == value


@pytest.mark.parametrize(
    ("text", "bytes_per_second"),
    [
        ("8bit/s", 1),
        ("100Mbit/s", 12.5e6),
        ("100 Mbps", 12.5e6),
        ("100Mb/s", 12.5e6),
        ("1Gbit/s", 125e6),
        ("2.5Gbit/s", 312.5e6),
        ("56kbit/s", 7e3),
        ("0.4Tbit/s", 50e9),
        ("10MB/s", 10e6),
        ("1.5GB/s", 1.5e9),
        ("1e9bit/s", 125e6),
    ],
)
def test_rates(text: str, bytes_per_second: float) -> None:
    assert parse_rate(text) == pytest.approx(bytes_per_second)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0.12s", 0.12), ("0.5ms", 5e-4), ("20us", 2e-5), ("20 µs", 2e-5), ("0s", 0), ("300ns", 3e-7)],
)
def test_times(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        *(
            (parse_count, text)
            for text in ("", "0", "-3", "1.5", "25.6Q", "0.1234567M", "1 000", "inf", "1e400")
        ),
        *((parse_rate, text) for text in ("", "1", "1Gbit", "0Mbit/s", "-1Gbit/s", "1Gbyte/s", "1Gbit/h")),
        *((parse_seconds, text) for text in ("", "1", "0.5", "-1s", "1min", "s", "1e999s", "infs")),
        *((parse_duration, text) for text in ("0s", "0.0ms", "soon")),
    ],
)
def test_what_cannot_be_read_is_quoted(parse: object, text: str) -> None:
    with pytest.raises(ValueError, match="^" + repr(text).replace(".", r"\.")):
        parse(text)  # type: ignore[operator]


def test_printed_numbers_have_three_digits_and_a_unit() -> None:
    assert [format_seconds(t) for t in (12.345, 1, 0.9994, 3e-3, 4.56e-5)] == [
        "12.3 s",
        "1 s",
        "999 ms",
        "3 ms",
        "45.6 us",
    ]
    assert [format_rate(r) for r in (12.5e6, 125e6, 1.25e10, 5)] == [
        "100 Mbit/s",
        "1 Gbit/s",
        "100 Gbit/s",
        "40 bit/s",
    ]
    assert [format_bytes(b) for b in (999.6, 1.5e6, 2.5e9, 0)] == ["1 kB", "1.5 MB", "2.5 GB", "0 B"]
