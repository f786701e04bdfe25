"""What becomes of the workers' states when another number of workers goes on with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

OnResize = Literal["error", "mean", "reset"]
"""What to do with the states of another number of workers."""

OWNER: Any = "owner"
"""Key in an optimizer's state for what a rank keeps as the owner of a shard."""

WHOLE = "whole"
"""Key in the owner's state of all shards together, of which the rank takes its own at the next step."""

State = dict[Any, dict[str, Any]]
"""An optimizer's state: that of each parameter, by the parameter's number, and the owner's."""


def check_on_resize(on_resize: object) -> None:
    """Raise where it is none of :data:`OnResize`."""
    if on_resize not in get_args(OnResize):
        raise ValueError(f'on_resize must be "error", "mean" or "reset", got {on_resize!r}')


def merged(states: Sequence[State]) -> State:
    """What each of a new number of workers starts with: the mean of the ``states`` of the old ones.

    * Float tensors: their mean over the workers that have them, taken in float64, in the dtype that they had
      (estimates are float32 at least). What is the same on all workers stays as it is.
    * Anything else (integers, packed signs, numbers) is kept where it is the same on all workers. Where it
      is not, the parameter's state starts empty, as that of a new optimizer.
    * The shards of the owners' state are put together; the new owners cut them anew, nothing is lost.

    Example:
        >>> merged([{0: {"estimate": torch.tensor([1.0])}}, {0: {"estimate": torch.tensor([4.0])}}])
        {0: {'estimate': tensor([2.5000])}}
    """
    keys = dict.fromkeys(key for state in states for key in state)  # in their order
    means = {key: _mean([state[key] for state in states if key in state]) for key in keys if key != OWNER}
    result: State = {key: mean for key, mean in means.items() if mean is not None}
    if OWNER in keys:
        result[OWNER] = {WHOLE: _whole([state[OWNER] for state in states])}
    return result


def _mean(own: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    names = dict.fromkeys(name for state in own for name in state)
    result = {}
    for name in names:
        values = [state[name] for state in own if name in state]
        if isinstance(values[0], Tensor) and values[0].is_floating_point():
            total = torch.zeros(values[0].shape, dtype=torch.float64)
            for value in values:
                total += value.cpu()
            result[name] = (total / len(values)).to(values[0].dtype)
        elif all(_is_same(value, values[0]) for value in values):
            result[name] = values[0]
        else:
            return None
    return result


def _is_same(value: Any, other: Any) -> bool:
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        return value.dtype == other.dtype and torch.equal(value, other)
    return type(value) is type(other) and bool(value == other)


def _whole(shards: Sequence[dict[str, Tensor]]) -> Tensor:
    if WHOLE in shards[0]:  # saved before the step that cuts
        return shards[0][WHOLE]
    return torch.cat([shard["estimate"].cpu() for shard in shards])


def own_shard(whole: Tensor, rank: int, size: int) -> Tensor:
    """The part of ``size`` elements that the owner ``rank`` has of :data:`WHOLE`.

    Shards lie one behind the other, and behind the last element that votes there are zeros.
    """
    part = whole[rank * size : (rank + 1) * size]
    return torch.cat([part, whole.new_zeros(size - part.numel())])
