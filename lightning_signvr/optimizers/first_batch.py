"""A first gradient over more samples than a minibatch has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from typing_extensions import override

from lightning_signvr.estimators import FULL_GRADIENT
from lightning_signvr.optimizers.gathering import check_finite, gathered_gradients, trained_parameters
from lightning_signvr.optimizers.given_gradient import GivenGradientOptimizer


class FirstBatchOptimizer(GivenGradientOptimizer):
    """A sign optimizer whose estimate begins at its first gradient, which may be of a larger batch.

    The theorems of these methods ask for that. Before the first step,

    .. code-block:: python

        with optimizer.large_first_batch():
            for inputs, targets in batches:
                loss = loss_of(inputs, targets)  # mean over the minibatch
                (loss * len(inputs) / number_of_samples).backward()

    Under Lightning, :class:`~lightning_signvr.callbacks.LargeFirstBatch` does that.
    """

    @contextmanager
    def large_first_batch(self) -> Iterator[None]:
        """Keep the sum of the gradients that the block computes, for the first step.

        Their sum must be the *mean* gradient: weight each minibatch by its share. It takes the place of the
        first step's own gradient. ``.grad`` is put back at the end; if the block raises, nothing is kept.

        Raises:
            RuntimeError: steps were made already, the block computes no gradient, or one that is not finite.
        """
        if steps := self.param_groups[0]["step"]:
            raise RuntimeError(
                f"large_first_batch() is for the start, and {type(self).__name__} has an estimate already, "
                f"from {steps} step(s): call it before the first step only, not after a resume, or make a "
                "new optimizer"
            )
        with gathered_gradients(trained_parameters(self)) as sums:
            yield
        if not sums:
            raise RuntimeError(
                "no gradient was computed in the block of large_first_batch(): call backward() in it, on "
                "losses of the parameters that the optimizer has"
            )
        check_finite(sums, self, "large_first_batch()")
        self.give_gradients(sums)

    @override
    def gradient_is_given(self) -> bool:
        return not self.param_groups[0]["step"] and any(FULL_GRADIENT in s for s in self.state.values())
