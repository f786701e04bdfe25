"""The step that all sign optimizers share: estimate, encode, vote, update."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from lightning_signvr.estimators import Estimator, recipe_of
from lightning_signvr.optimizers.checks import check_at_least_zero
from lightning_signvr.optimizers.finite_gradients import FiniteGradients
from lightning_signvr.optimizers.gathering import trained
from lightning_signvr.optimizers.joint_update import update_together
from lightning_signvr.optimizers.overlapping import Overlap
from lightning_signvr.optimizers.rank_states import KEY, own_rank_state
from lightning_signvr.optimizers.resizing import OWNER
from lightning_signvr.signs import Direction, check_signable
from lightning_signvr.signs.dispatch import triton_kernels
from lightning_signvr.voting import MajorityVote, ScaledMeanVote, VotedSigns
from lightning_signvr.voting.layout import common_device
from lightning_signvr.voting.nonfinite import NOT_FINITE, MaybeDirection


class SignOptimizer(Optimizer):
    """An optimizer whose step is the voted sign of what each worker estimates.

    A step goes once down this line:

    1. :meth:`estimate`: the worker's direction from its own gradient (``parameter.grad``, which must
       *not* have been averaged over the workers);
    2. :meth:`encode`: the numbers whose signs the worker votes with; they are packed at once, so that one
       tensor's are in memory at a time;
    3. the vote, over all parameters together, the only communication;
    4. :meth:`update`: the voted signs move the parameters, on all workers alike.

    On a GPU, kernels do that for many parameters at once, in two passes over memory, where no stage is
    overridden or observed.

    A method is made from an estimator and, where it differs, an overridden stage. Without
    ``torch.distributed``, or with a single worker, the vote is the worker's own sign.

    Args:
        params: parameters or parameter groups, in the same order on all workers.
        defaults: hyper-parameters of a group, at least ``lr`` (float or one-element tensor),
            ``weight_decay`` (decoupled) and ``maximize``.
        estimator: see :mod:`lightning_signvr.estimators`.
        vote: see :class:`~lightning_signvr.voting.MajorityVote`; None for its defaults, which a
            strategy may replace by its own.

    Attributes:
        vote: what decides; its ``traffic`` and ``last`` tell what happened.
        vote_is_default: whether no vote was passed.
        vote_class: the kind of vote that the method needs.
        observers: called with each parameter that has a gradient and this worker's estimate for it, in the
            order of the votes; monitors look at a step that way. Not copied or pickled.
        overlapped: what :meth:`overlap` made, None without. Not copied or pickled.

    Raises:
        ValueError: a hyper-parameter out of range, with its name.
        TypeError: a parameter that has no sign vote (integer, complex, sparse).
    """

    vote_class: type[MajorityVote] = MajorityVote
    observers: tuple[Callable[[Tensor, Tensor], None], ...] = ()
    overlapped: Overlap | None = None

    def __init__(
        self,
        params: ParamsT,
        defaults: dict[str, Any],
        estimator: Estimator,
        vote: MajorityVote | None = None,
    ) -> None:
        self._check_vote(vote)
        self.estimator = estimator
        self.vote_is_default = vote is None
        self._finite = FiniteGradients()
        self.vote = self.vote_class() if vote is None else vote
        super().__init__(params, {**defaults, "step": 0})

    def _check_vote(self, vote: MajorityVote | None) -> None:
        if vote is None:
            return
        method, needed = type(self).__name__, self.vote_class
        if not isinstance(vote, needed):
            raise TypeError(f"vote must be a {needed.__name__} or None for {method}, got {vote!r}")
        if isinstance(vote, ScaledMeanVote) and not issubclass(needed, ScaledMeanVote):
            raise TypeError(
                f"vote must not be a ScaledMeanVote for {method}, got {vote!r}: its workers send no scales; "
                "for a mean of signs use MeanVote, for scaled signs EFSignSGD, EFSignum, EFLion or DVRSign"
            )

    def check_group(self, group: dict[str, Any]) -> None:
        """Raise where a group's hyper-parameters are out of range; subclasses add theirs."""
        check_at_least_zero("lr", group["lr"])
        check_at_least_zero("weight_decay", group["weight_decay"])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        self.check_group(group)
        for index, parameter in enumerate(group["params"]):
            check_signable(parameter, f"parameter {index} of group {len(self.param_groups) - 1}")
        group["step"] = self.param_groups[0]["step"]

    def estimate(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """This worker's direction for a parameter that has a gradient."""
        assert parameter.grad is not None
        elsewhere = self.gradients_elsewhere(parameter)
        return self.estimator(parameter.grad, self.state[parameter], group, elsewhere)

    def gradients_elsewhere(self, parameter: Tensor) -> dict[str, Tensor]:
        """Gradients of the step's samples at other points, for methods that compare points."""
        return {}

    def encode(self, direction: Tensor, group: dict[str, Any], index: int) -> Tensor:
        """The numbers whose signs the worker votes with: here the direction itself.

        Args:
            direction: what :meth:`estimate` gave; not to be changed, it may be state.
            group: the parameter's hyper-parameters.
            index: the parameter's place among all that vote, to key random numbers with.
        """
        return direction

    def directions(
        self, parameters: Sequence[Tensor], groups: Sequence[dict[str, Any]]
    ) -> Iterator[MaybeDirection]:
        """What this worker votes with, one tensor after the other; None where it has no gradient."""
        for index, (parameter, group) in enumerate(zip(parameters, groups, strict=True)):
            yield self.direction(parameter, group, index)

    def direction(self, parameter: Tensor, group: dict[str, Any], index: int) -> MaybeDirection:
        """What this worker votes with for a parameter; None where it has no gradient."""
        if parameter.grad is None:
            return None
        if not self.is_finite(parameter):
            return NOT_FINITE  # before any state of it changes
        recipe = self._recipe(parameter.device)
        if recipe is not None:
            return recipe(parameter.grad, self.state[parameter], group, self.gradients_elsewhere(parameter))
        estimate = self.estimate(parameter, group)
        self.show(parameter, estimate)
        return self.encode(estimate, group, index)

    def is_finite(self, parameter: Tensor) -> bool:
        """Whether there is no NaN or inf in a parameter's gradients of this step."""
        return self._finite.of(parameter, self.gradients(parameter))

    def forget_gradients(self) -> None:
        """Whatever is known of gradients is of another step."""
        self._finite.forget()

    def gradients(self, parameter: Tensor) -> list[Tensor]:
        """A parameter's gradients of this step, also at other points."""
        return [] if parameter.grad is None else [parameter.grad]

    def _recipe(self, device: torch.device) -> Callable[..., Direction] | None:
        """The estimator's recipe, where kernels carry it out and nobody needs the direction before that."""
        if triton_kernels(device) is None or self.observers:
            return None
        if any(self._overrides(stage) for stage in ("estimate", "show", "encode")):
            return None
        return recipe_of(self.estimator)

    def _overrides(self, name: str) -> bool:
        return getattr(type(self), name) is not getattr(SignOptimizer, name)

    def show(self, parameter: Tensor, estimate: Tensor) -> None:
        """Let the observers look at an estimate, which they must not change."""
        for observe in self.observers:
            observe(parameter, estimate)

    def cast(self, parameters: Sequence[Tensor], groups: Sequence[dict[str, Any]]) -> VotedSigns:
        """Vote on all parameters at once; a collective. The outcome may still be on its way."""
        if self.overlapped is not None:
            return self.overlapped.cast(parameters)
        return self.vote.stream(self.directions(parameters, groups), like=parameters)

    def move(self, group: dict[str, Any]) -> tuple[float, float]:
        """``alpha`` and ``decay`` of a step ``x <- decay * x + alpha * vote``."""
        lr = float(group["lr"])
        return lr if group["maximize"] else -lr, 1 - lr * group["weight_decay"]

    def update(self, parameter: Tensor, votes: VotedSigns, index: int, group: dict[str, Any]) -> None:
        """``x <- x - lr * (vote + weight_decay * x)``: arXiv 1810.05291, algorithm 1."""
        alpha, decay = self.move(group)
        votes.add_to_(index, parameter, alpha=alpha, decay=decay)

    @property
    def why_not_overlap(self) -> str | None:
        """Why :meth:`overlap` would be unsound for this method; None where it is sound."""
        if self._overrides("cast") or self._overrides("directions"):
            return f"{type(self).__name__} votes on all tensors together"
        if self.vote.nonfinite != "abstain":
            return f'nonfinite="{self.vote.nonfinite}" looks at all gradients before the vote'
        return None

    def overlap(self) -> Overlap:
        """Vote on each gradient as soon as backward has it, from now on; a collective of all workers.

        The outcome is the same to the last bit. See :class:`~lightning_signvr.optimizers.overlapping.Overlap`
        for what the training loop must keep to; Lightning's strategy does it by itself.

        Returns:
            What was made, which is also :attr:`overlapped`.

        Raises:
            ValueError: a method for which it is unsound.
        """
        if self.why_not_overlap is not None:
            raise ValueError(f"votes cannot begin in backward: {self.why_not_overlap}; leave out overlap")
        if self.overlapped is None:
            self.overlapped = Overlap(self)
        return self.overlapped

    def evaluate(self, closure: Callable[[], Any] | None) -> Any:
        """Run the step's closure, if there is one; its loss."""
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()

    def before_update(self, parameter: Tensor, votes: VotedSigns, index: int, group: dict[str, Any]) -> None:
        """Called for each parameter that takes part, before the votes move it."""

    def room_for_old(self, parameters: Sequence[Tensor], group: dict[str, Any]) -> Sequence[Tensor] | None:
        """Tensors that a kernel is to leave the parameters in as they were before it moves them.

        :meth:`before_update` is not called then. None to have it called.
        """
        return None

    @overload
    def step(self, closure: None = ...) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Vote and move the parameters; a collective: all workers must call it equally often.

        A parameter without a gradient here abstains, and still moves as the other workers vote. One
        without a gradient on every worker is left alone, its weight decay included. A gradient with NaN or
        inf is as good as none, or what else the vote's ``nonfinite`` says; the estimate stays as it was.

        Args:
            closure: evaluates the model anew and returns the loss.

        Returns:
            The closure's loss, or None.

        Raises:
            TypeError: a sparse gradient.
            RuntimeError: the workers do not step on the same parameters; a worker had NaN or inf in its
                gradients, where that is an error by the vote's rules.
        """
        loss: float | None = self.evaluate(closure)
        self.vote.step = self.param_groups[0]["step"]
        self._check_gradients()  # before any state changes
        pairs = trained(self)
        parameters, groups = [parameter for parameter, _ in pairs], [group for _, group in pairs]
        if not self._may_step(parameters):
            return loss
        votes = self.cast(parameters, groups)
        together = type(votes) is VotedSigns and not self._overrides("update")
        together = together and triton_kernels(votes.planes.device) is not None
        for indices in votes.batches():
            if together:
                update_together(self, votes, indices, parameters, groups)
                continue
            for index in indices:
                parameter, group = parameters[index], groups[index]
                self.before_update(parameter, votes, index, group)
                if votes.present[index]:
                    self.update(parameter, votes, index, group)
        for group in self.param_groups:
            group["step"] += 1
        return loss

    def _check_gradients(self) -> None:
        for number, group in enumerate(self.param_groups):
            for position, parameter in enumerate(group["params"]):
                if parameter.requires_grad and parameter.grad is not None:
                    check_signable(parameter.grad, f"the gradient of parameter {position} of group {number}")

    def _may_step(self, parameters: Sequence[Tensor]) -> bool:
        """Whether the step is to be taken; a collective where a worker's NaN or inf stops all."""
        if self.overlapped is not None:
            return True
        self.forget_gradients()
        device, asks = common_device(parameters), self.vote.nonfinite != "abstain"
        if device.type == "cpu" and not asks:
            return True
        finite = self._finite.look({parameter: self.gradients(parameter) for parameter in parameters})
        return self.vote.may_step(finite, device) if asks else True

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but every worker takes its own state and every tensor keeps its dtype.

        Where ``state_dict`` holds the states of all workers (:mod:`.rank_states`), each takes its own. torch
        casts state to the dtype of its parameter, which would round the float32 estimator of a bfloat16
        parameter.

        Raises:
            RuntimeError: ``state_dict`` holds the states of another number of workers than vote here (pass
                it through :func:`.rank_states.resized`), or it is damaged.
        """
        if KEY in state_dict:
            state_dict = own_rank_state(state_dict, self.vote.rank, self.vote.workers)
        self.vote.nonfinite_ranks.in_a_row.clear()
        super().load_state_dict(state_dict)
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for parameter, key in zip(group["params"], saved["params"], strict=True):
                for name, value in state_dict["state"].get(key, {}).items():
                    if isinstance(value, Tensor):
                        self.state[parameter][name] = value.detach().clone().to(parameter.device)
        if OWNER in self.state:
            device = self.param_groups[0]["params"][0].device
            self.state[OWNER] = {name: value.clone().to(device) for name, value in self.state[OWNER].items()}

    def __getstate__(self) -> dict[str, Any]:
        extra = ("estimator", "vote", "vote_class", "vote_is_default")
        return {
            **super().__getstate__(),
            **{name: getattr(self, name) for name in extra},
            "_finite": FiniteGradients(),
        }
