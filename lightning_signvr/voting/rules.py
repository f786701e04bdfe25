"""What a vote does where a sign does not decide: ties and zeros.

Ties (as many workers for + as for -, possible with an even number of voters):

* ``"random"``: a fair coin, drawn by the owner of the shard from counter-based random bits, so
  that all replicas see the same coin.
* ``"zero"``: the coordinate does not move. Costs a second bit per parameter on the way back.
* ``"positive"``: the vote is +1.

Zeros (a worker whose direction is exactly 0, -0 or NaN at a coordinate):

* ``"abstain"``: the worker does not vote there; where nobody votes, nothing moves. Costs a second
  bit per parameter, both ways, for those tensors in which some worker has a zero.
* ``"random"``: the worker tosses its own coin; strictly one bit.
* ``"positive"``: the worker votes +1; strictly one bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

TieRule = Literal["random", "zero", "positive"]
ZeroRule = Literal["abstain", "random", "positive"]

TIE_RULES: Sequence[str] = get_args(TieRule)
ZERO_RULES: Sequence[str] = get_args(ZeroRule)

# streams of random bits, see lightning_signvr.signs.random_bits
TIE_STREAM = 0
SERVER_STREAM = 4 << 32  # an owner's randomized outcomes


def zero_stream(worker: int) -> int:
    """The stream of a worker's own coins."""
    return 1 + worker


def encoder_stream(worker: int) -> int:
    """The stream of a worker's randomized signs; none of the above for any worker below 2**32."""
    return (2 << 32) + worker


def component_stream(worker: int) -> int:
    """The stream of a worker's draws of a regularizer's components."""
    return (3 << 32) + worker


def check_rule(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raise ValueError where ``value`` is not one of ``allowed``."""
    if value not in allowed:
        choices = ", ".join(repr(rule) for rule in allowed)
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")


def check_optional_count(name: str, value: int | None, none: str) -> None:
    """Raise where ``value`` is neither None nor an int of at least 1.

    Args:
        name: of the argument.
        value: of it.
        none: what None stands for.

    Raises:
        TypeError, ValueError: it is not.
    """
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int or None, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}; None {none}")


def check_seed(seed: int) -> None:
    """Raise where ``seed`` does not fit the random bits' key."""
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"seed must be an int, got {type(seed).__name__}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be between 0 and 2**64 - 1, got {seed}")
