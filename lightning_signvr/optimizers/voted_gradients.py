"""Let any torch optimizer step on the voted sign of the workers' gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import LBFGS, Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_signvr.optimizers.gathering import trained_parameters
from lightning_signvr.signs import check_signable
from lightning_signvr.signs.finite import are_finite
from lightning_signvr.voting import MajorityVote
from lightning_signvr.voting.layout import common_device
from lightning_signvr.voting.nonfinite import NOT_FINITE


def vote_gradients(optimizer: Optimizer, vote: MajorityVote) -> RemovableHandle:
    """Before each step of ``optimizer``, replace the gradients by their voted signs.

    All workers then step on the same gradients of -1, 0 and +1, so that their optimizer states stay
    the same as well. A parameter with a gradient on any worker gets one on all of them. A gradient with NaN
    or inf is as good as none, or what else the vote's ``nonfinite`` says.

    Args:
        optimizer: of any kind but LBFGS, whose line search would take other steps on each worker.
        vote: what decides. It is called once per step, after the step's closure where there is one.

    Returns:
        A handle whose ``remove()`` ends it.

    Raises:
        TypeError: LBFGS.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = torch.optim.SGD([weight], lr=1.0)
        >>> handle = vote_gradients(optimizer, MajorityVote())
        >>> weight.grad = torch.tensor([0.5, -3.0])
        >>> optimizer.step()
        >>> weight.data
        tensor([-1.,  1.])
    """
    if isinstance(optimizer, LBFGS):
        raise TypeError(
            "optimizer is LBFGS, whose line search follows each worker's own loss, so that the workers "
            "would part: use another optimizer"
        )

    def replace() -> None:
        # grad_scale: set by a GradScaler on optimizers that unscale inside step(), i.e. after the vote
        if getattr(optimizer, "grad_scale", None) is not None:
            raise ValueError(
                f"{type(optimizer).__name__} is fused and unscales float16 gradients after the vote: "
                "build it with fused=False, or train in bfloat16"
            )
        _replace_by_vote(optimizer, vote)

    def before_step(_: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) > 1 and args[1] is not None:  # args[0] is the optimizer
            return (args[0], _then(args[1], replace), *args[2:]), kwargs
        if kwargs.get("closure") is not None:
            return args, {**kwargs, "closure": _then(kwargs["closure"], replace)}
        replace()
        return None

    handle: RemovableHandle = optimizer.register_step_pre_hook(before_step)
    return handle


def _then(closure: Callable[[], Any], action: Callable[[], None]) -> Callable[[], Any]:
    def both() -> Any:
        loss = closure()
        action()
        return loss

    return both


@torch.no_grad()
def _replace_by_vote(optimizer: Optimizer, vote: MajorityVote) -> None:
    parameters = trained_parameters(optimizer)
    for index, parameter in enumerate(parameters):
        if parameter.grad is not None:
            check_signable(parameter.grad, f"the gradient of parameter {index}")
    device = common_device(parameters)
    finite = are_finite([p.new_zeros(()) if p.grad is None else p.grad for p in parameters])
    if vote.nonfinite != "abstain" and not vote.may_step(all(finite), device):
        for parameter in parameters:
            parameter.grad = None  # which a torch optimizer leaves alone
        return
    directions = [p.grad if known else NOT_FINITE for p, known in zip(parameters, finite, strict=True)]
    votes = vote(directions, like=parameters)
    for index, parameter in enumerate(parameters):
        if not votes.present[index]:
            parameter.grad = None
        else:
            signs = votes.signs(index, parameter.dtype)
            if parameter.grad is None:
                parameter.grad = signs
            else:
                parameter.grad.copy_(signs)
