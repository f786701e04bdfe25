"""What must hold all along a run of soak.py, counted."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from soak_worker import FAULTS, Restored, State, Step, Task, Usage, crc
from torch import Tensor

from lightning_signvr.checkpoint_files import load
from lightning_signvr.signs.delta import longest_code
from lightning_signvr.voting.header import BallotHeader, OutcomeHeader

REPLICAS = "replicas are equal"
REPLAY = "a step that is run again gives the same"
CHECKPOINT = "a checkpoint holds what the workers had"
RESTORED = "a restarted worker has what the checkpoint holds, or its mean"
BYTES = "bytes sent are those of the headers and one bit per parameter"
BYTES_AROUND = "around an abstention they are at most those of the longest code"
VOTES = "a vote names the workers with NaN or inf, and no other"
SURVIVORS = "a survivor of a kill ends in time, with an error"
NAMED = "that error names all of the dead"
ALIVE = "nobody else dies or hangs"
FILES = "files do not pile up"
MEMORY = "a process grows by at most 8 MB in 10,000 steps"
FDS = "file descriptors do not become more"
THREADS = "threads do not become more"
LOSS = "the loss falls from quarter to quarter"
ACCURACY = "accuracy on the test images is at least 0.93"
INVARIANTS = (
    REPLICAS, REPLAY, CHECKPOINT, RESTORED, BYTES, BYTES_AROUND, VOTES, SURVIVORS, NAMED, ALIVE, FILES,
    MEMORY, FDS, THREADS, LOSS, ACCURACY,
)  # fmt: skip
SHOWN = 5
"""Violations of an invariant that are printed."""

MOST_GROWTH, STEPS_OF_GROWTH = 8 * 2**20, 10_000  # fewer steps may take as much
LEAST_ACCURACY = 0.93
NOTHING = Usage(0, 0, 0)


class Checks:
    """Counts checks and violations, and prints the first of these."""

    def __init__(self) -> None:
        self.made: Counter[str] = Counter()
        self.violated: Counter[str] = Counter()

    def equal(self, name: str, found: object, expected: object, where: str) -> None:
        self.holds(name, found == expected, f"{where}: {found}, expected {expected}")

    def at_most(self, name: str, found: float, most: float, where: str) -> None:
        self.holds(name, found <= most, f"{where}: {found}, at most {most}")

    def holds(self, name: str, it_does: bool, text: str) -> None:
        self.made[name] += 1
        if it_does:
            return
        self.violated[name] += 1
        if self.violated[name] <= SHOWN:
            print(f"VIOLATED: {name}: {text}", file=sys.stderr, flush=True)


class Wire:
    """How many bytes a worker sends in a step, by the description of the exchange in two phases.

    Args:
        numels: elements of each parameter tensor.
    """

    def __init__(self, numels: Sequence[int]) -> None:
        self._heads = BallotHeader.size(len(numels)) + OutcomeHeader.size()
        self._plane = sum(-(-numel // 8) for numel in numels)

    def _shard(self, workers: int) -> int:
        return -(-self._plane // (8 * workers)) * 8

    def plain(self, workers: int, begins: bool) -> int:
        """Where nobody abstains, nor did in the two steps before.

        Args:
            workers: that vote.
            begins: whether it is the first vote of the processes, which compare what they vote on.
        """
        agreement = 4 * 8 if begins else 0
        return (workers - 1) * (agreement + self._heads + 2 * self._shard(workers))

    def most(self, workers: int, begins: bool) -> int:
        """Elsewhere: each way may have a slot, and where that is too small another message."""
        return self.plain(workers, begins) + 4 * (workers - 1) * longest_code(self._shard(workers))


@dataclass
class Growth:
    """Of a process after its warm-up.

    Attributes:
        most: at the worst.
        memory: resident bytes after each step.
    """

    most: Usage = NOTHING
    memory: list[int] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return len(self.memory)

    @property
    def late(self) -> int:
        """Bytes in the second half of the steps: at first a process grows as it touches pages."""
        half = self.memory[self.steps // 2 :]
        return max(half) - half[0] if half else 0


@dataclass
class Life:
    """One process per rank, from a start to the next kill.

    Attributes:
        first: step of the checkpoint that it starts from.
        expected: what each worker should have then; None at the very start.
        abstentions: by step.
        bases: by rank, what it uses after its warm-up.
        growths: by rank, since then.
    """

    workers: int
    first: int
    expected: list[State] | None
    abstentions: dict[int, int] = field(default_factory=dict)
    bases: dict[int, Usage] = field(default_factory=dict)
    growths: dict[int, Growth] = field(default_factory=dict)


class Observer:
    """Looks at all that the workers say.

    Attributes:
        checks: what it found.
        injected: faults in the gradients that workers had.
        taken: steps, those that were run again included.
        longest: growth in the lives that are over, by the most steps after the warm-up.
        worst: growth in any life.
        precise: errors after kills that name the dead alone, and no worker that waits for others.
    """

    def __init__(self, task: Task, numels: Sequence[int], warm_up: int) -> None:
        self.checks = Checks()
        self.injected = self.taken = self.precise = 0
        self.worst = NOTHING
        self.longest = Growth()
        self._cut_off: set[int] = set()
        self._task, self._wire, self._warm_up = task, Wire(numels), warm_up
        self._losses: dict[int, float] = {}
        self._states: dict[int, dict[int, State]] = {}  # by step and rank
        self._workers = 0  # with which the steps after the last checkpoint were taken
        self._life = Life(0, 0, None)

    # -- a life ---------------------------------------------------------------------------------

    def starts(self, workers: int) -> None:
        """Processes are about to start."""
        folder, first, expected = self._task.checkpoint.parent, 0, None
        unfinished = list(folder.glob(".unfinished-*"))
        self._cut_off |= {path.stat().st_mtime_ns for path in unfinished}
        self.checks.at_most(FILES, len(list(folder.iterdir())), 1 + len(unfinished[:1]), f"in {folder}")
        if self._task.checkpoint.exists():
            saved = load(self._task.checkpoint)
            first, states = saved["step"], saved["optimizer"]["rank_states"]["states"]
            parameters = crc(saved["net"])
            held = {rank: State(parameters, crc(state)) for rank, state in enumerate(states)}
            had = {rank: self._states[first].get(rank) for rank in held}
            self.checks.equal(CHECKPOINT, held, had, f"step {first}")
            if len(states) != workers:
                states = [mean(states)] * workers
            expected = [State(parameters, crc(state)) for state in states]
        if workers != self._workers:  # another trajectory
            for step in [step for step in self._states if step > first]:
                del self._states[step]
        self._workers = workers
        self._life = Life(workers, first, expected)

    def restored(self, rank: int, word: Restored) -> None:
        where = f"rank {rank} at step {word.step}"
        if self._life.expected is not None:
            self.checks.equal(RESTORED, word.state, self._life.expected[rank], where)
        if word.step == 0:
            self._note(rank, word.step, word.state)

    def stepped(self, rank: int, word: Step) -> None:
        life, task, where = self._life, self._task, f"rank {rank} in step {word.step}"
        self._note(rank, word.step, word.state)
        fault = task.fault(word.step, rank)
        self.injected += fault is not None
        self.taken += rank == 0
        self.checks.equal(VOTES, word.nonfinite, task.faulty(word.step, life.workers), where)
        life.abstentions[word.step] = word.abstentions
        lately = range(word.step - 2, word.step + 1)
        rules = life.workers, word.step == life.first + 1
        if any(life.abstentions.get(step) for step in lately):
            self.checks.at_most(BYTES_AROUND, word.sent, self._wire.most(*rules), where)
        else:
            self.checks.equal(BYTES, word.sent, self._wire.plain(*rules), where)
        if rank == 0 and fault != FAULTS[0]:
            self._losses[word.step] = word.loss
        self._watch(rank, word)

    def _note(self, rank: int, step: int, state: State) -> None:
        ranks, where = self._states.setdefault(step, {}), f"rank {rank} in step {step}"
        if rank in ranks:
            self.checks.equal(REPLAY, state, ranks[rank], where)
        for other, theirs in ranks.items():
            if other != rank:
                self.checks.equal(REPLICAS, state.parameters, theirs.parameters, f"{where}, beside {other}")
        ranks[rank] = state

    def _watch(self, rank: int, word: Step) -> None:
        life = self._life
        if word.step - life.first == self._warm_up:
            life.bases[rank] = word.usage
            life.growths[rank] = Growth()
        elif rank in life.bases:
            growth = life.growths[rank]
            grown = (now - before for now, before in zip(word.usage, life.bases[rank], strict=True))
            growth.most = Usage(*map(max, grown, growth.most))
            growth.memory.append(word.usage.memory)

    def ends(self) -> None:
        """The processes have ended."""
        for rank, growth in self._life.growths.items():
            where = f"rank {rank}, {growth.steps} steps after its warm-up from step {self._life.first}"
            most = MOST_GROWTH * max(1.0, growth.steps / STEPS_OF_GROWTH)
            for name, grown, limit in zip((MEMORY, FDS, THREADS), growth.most, (most, 0, 0), strict=True):
                self.checks.at_most(name, grown, limit, where)
            self.worst = Usage(*map(max, growth.most, self.worst))
            if growth.steps > self.longest.steps:
                self.longest = growth

    # -- what went wrong, and the end -------------------------------------------------------------

    def survived(self, errors: dict[int, str], victims: Sequence[int]) -> None:
        """Which errors the others ended with, once all have ended."""
        for rank, text in errors.items():
            where = f"rank {rank}, where {victims} were killed"
            self.checks.holds(SURVIVORS, bool(text), f"{where}: no reason")
            names = text.partition("no sign of life from ")[2].partition(":")[0]
            named = {int(number) for number in re.findall(r"\d+", names)}
            self.checks.holds(NAMED, named >= set(victims), f"{where}: {text}")
            self.precise += named == set(victims)

    @property
    def cut_off(self) -> int:
        """Checkpoints whose writing a kill has cut off."""
        return len(self._cut_off)

    def quarters(self) -> list[float]:
        """Mean loss of rank 0 in each quarter of the run."""
        length = self._task.steps / 4
        parts: list[list[float]] = [[], [], [], []]
        for step, loss in self._losses.items():
            parts[min(3, int((step - 1) / length))].append(loss)
        return [fmean(part) if part else float("nan") for part in parts]

    def finished(self, accuracy: float) -> None:
        quarters = self.quarters()
        for number in (1, 2, 3):
            earlier, later = quarters[number - 1], quarters[number]
            self.checks.holds(
                LOSS, later < earlier, f"{earlier:.4f}, then {later:.4f} in quarter {number + 1}"
            )
        self.checks.holds(ACCURACY, accuracy >= LEAST_ACCURACY, f"{accuracy:.3f}, at least {LEAST_ACCURACY}")


def mean(states: Sequence[dict[Any, dict[str, Any]]]) -> dict[Any, dict[str, Any]]:
    """What a new number of workers should start with, each."""

    def of(values: Sequence[Any]) -> Any:
        if not isinstance(values[0], Tensor):
            return values[0]
        return torch.stack([value.double() for value in values]).mean(0).to(values[0].dtype)

    return {
        key: {name: of([state[key][name] for state in states]) for name in states[0][key]}
        for key in states[0]
    }
