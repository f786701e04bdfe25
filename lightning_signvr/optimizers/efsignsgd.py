"""EF-signSGD: SGD's step as scaled signs, with error feedback both ways."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import override

from lightning_signvr.estimators.step_error_feedback import StepErrorFeedback
from lightning_signvr.optimizers.checks import check_fraction
from lightning_signvr.optimizers.error_feedback import ErrorFeedbackOptimizer
from lightning_signvr.voting import ScaledMeanVote


class EFSignSGD(ErrorFeedbackOptimizer):
    """``p = lr * g + e``; ``q = (||p||_1 / numel) sign(p)``; ``e <- p - q``; ``x <- x - q``.

    Karimireddy, Rebjock, Stich, Jaggi, "Error Feedback Fixes SignSGD and other Gradient Compression
    Schemes" (ICML 2019, arXiv 1901.09847, algorithm 1), with a scale per tensor as in the authors' code.
    With one worker that is exactly the method. With several, each keeps its own ``e`` and sends its ``q``,
    and the answer is compressed in the same way: the owner of a part of a tensor adds the mean of the ``q``
    to an error ``e_s`` of its own, sends back the scaled sign ``s sign(a)`` of the sum ``a`` (``s`` is the
    mean ``|a|`` over the coordinates that are not 0, so that the scaled sign of a scaled sign is itself),
    and keeps the rest; ``x <- x - s sign(a)``. What both errors hold back is sent later: nothing is lost.

    **The learning rate is SGD's**, not that of the other classes here: a step is as long as SGD's, it shrinks
    with the gradient, and tuned values are around 0.01 to 0.1. It is part of what is compressed, so that a
    schedule acts on new gradients only. Momentum is torch SGD's heavy ball, ``b <- momentum b + g`` in the
    place of ``g`` (the authors' code without its Nesterov option). Weight decay is decoupled as everywhere
    in this library, ``x <- (1 - lr * weight_decay) x``; the authors' code adds ``weight_decay * x`` to ``g``.

    Rate: the leading term of SGD's ``O(1 / sqrt(T))``; the compression is in a term of higher order alone.
    That is for one worker. It averages, so that workers' data may differ, and it is not robust to hostile
    workers: a large scale outvotes the others.

    Per parameter: 1 bit up and a float32 per tensor, 1 bit down and a float32 per tensor and owner; state:
    one copy (``e``, float32 for 16-bit parameters), two with momentum, and 1/n of a copy (``e_s``, in
    ``state["owner"]["estimate"]``); one gradient per step.

    Args:
        params: parameters or groups.
        lr: SGD's learning rate, float or one-element tensor, at least 0. Decay it as for SGD; the authors
            divide it by 10 after half and after three quarters of the epochs.
        momentum: weight of the old sum of gradients, in [0, 1); 0 for none. A sum, not an average: a learning
            rate for momentum 0 is ``1 / (1 - momentum)`` times too large.
        weight_decay: decoupled, at least 0.
        maximize: move uphill.
        vote: None for :class:`~lightning_signvr.voting.ScaledMeanVote` with its defaults.

    Raises:
        ValueError, TypeError: see :class:`SignOptimizer`.
        RuntimeError: in ``step()``: a gradient that is not finite, or a state of other workers.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = EFSignSGD([weight], lr=0.5)
        >>> weight.grad = torch.tensor([3.0, -1.0])  # a step of -1.5 and 0.5: sent as -1 and 1
        >>> optimizer.step()
        >>> weight.data, optimizer.state[weight]["error"]
        (tensor([-1.,  1.]), tensor([0.5000, 0.5000]))
    """

    scaled_answer = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        vote: ScaledMeanVote | None = None,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults, StepErrorFeedback(), vote)

    @override
    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        check_fraction("momentum", group["momentum"])

    @override
    def serve(self, mean: Tensor, kept: Tensor, group: dict[str, Any]) -> tuple[Tensor, float]:
        kept.add_(mean)
        total = kept.abs().sum(dtype=torch.float64)  # exact where all magnitudes are the same
        scale = float((total / kept.count_nonzero().clamp(min=1)).float())
        signs = kept.sign()
        kept.sub_(signs, alpha=scale)
        return signs, scale

    @override
    def move(self, group: dict[str, Any]) -> tuple[float, float]:
        _, decay = super().move(group)
        return 1.0 if group["maximize"] else -1.0, decay
