"""What a hostile rank could send in headers and planes: refused with its rank, or as good as honest."""

from __future__ import annotations

import pytest

from tests.voting.fuzz_headers import READERS, fuzz


@pytest.mark.slow
def test_a_hundred_thousand_changed_headers_and_codes() -> None:
    found = fuzz(100_000, seed=0)
    assert set(found) == {reader.__name__ for reader in READERS}
    assert all(min(read, refused) > 1000 for read, refused in found.values()), found


def test_some_changed_headers_and_codes() -> None:
    found = fuzz(2_000, seed=1)
    assert all(min(read, refused) > 10 for read, refused in found.values()), found
