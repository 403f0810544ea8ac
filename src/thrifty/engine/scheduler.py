"""The scheduler: who runs in the next step, who waits, and who makes room.

The next one is the fair queue's choice (`admission/fair_queue.py`): first come, first served, but for priorities and
between owners. Admission reserves a prompt's peak; decoding sequences reserve page by page. When
the budget has no room for what is running, idle pages of the prefix tree give way first, then the youngest
sequence is parked: its segments may move to the disk tier, and it goes on later exactly where it stopped.
The oldest sequence always runs, and a request that could not run alone was refused at submission, so
everything ends.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from thrifty.engine.admission.fair_queue import FairQueue
from thrifty.engine.answer import Answer
from thrifty.engine.running import Running, State
from thrifty.errors import BudgetError, QueueFullError

Queue = FairQueue | list[Running]


class SchedulerMemory(Protocol):
    """What the scheduler asks of the memory (engine/admission/memory.py)."""

    def admit(self, sequence: Running) -> None:
        """Reserve the sequence's prefill peak and open its cache. Raises BudgetError with nothing changed."""
        ...

    def cover(self, sequence: Running) -> None:
        """Make sure that the next step's rows have room. Raises BudgetError with nothing changed."""
        ...

    def park(self, sequence: Running) -> None:
        """Let the sequence's segments move to the disk tier, and end its reservation."""
        ...

    def restore(self, sequence: Running, beside: int) -> None:
        """Bring a parked sequence back to go on beside so many active ones. Raises BudgetError with nothing changed."""
        ...


@dataclass(frozen=True)
class Scheduled:
    """One step: sequences that decode together, the one whose prefill advances by a piece, and those that
    cannot go on (not even alone, or for an error of their own), each with the reason.
    """

    decode: list[Running]
    prefill: Running | None
    stuck: list[tuple[Running, BaseException]]


class Scheduler:
    """Queues of sequences. It changes their state and asks the memory for room; it computes nothing."""

    def __init__(self, memory: SchedulerMemory, batch: int, queue: int) -> None:
        """batch: sequences that may be active. queue: sequences that may wait for their admission."""
        self.waiting = FairQueue()
        self.active: list[Running] = []
        self.parked: list[Running] = []
        self.failed: list[tuple[Running, BaseException]] = []
        #: Whether somebody who is none of the sequences holds memory and gives it back by itself.
        self.others_hold: Callable[[], bool] = _nobody
        #: Whether the next one had no room when it was last looked at.
        self.lacks_room = False
        self._memory = memory
        self._batch = batch
        self._queue = queue

    def __len__(self) -> int:
        """Sequences that are not finished."""
        return len(self.waiting) + len(self.active) + len(self.parked) + len(self.failed)

    def sequences(self) -> list[Running]:
        """All unfinished sequences."""
        return [*self.active, *self.parked, *self.waiting, *(sequence for sequence, _ in self.failed)]

    def sequence_of(self, answer: Answer, index: int) -> Running | None:
        """The unfinished sequence of an answer's sample."""
        return next((own for own in self.sequences() if own.answer is answer and own.index == index), None)

    def describe(self) -> dict[str, int]:
        """Queue lengths, JSON-ready."""
        return {"waiting": len(self.waiting), "active": len(self.active), "parked": len(self.parked)}

    def submit(self, sequence: Running) -> None:
        """Put a sequence in the queue. Raises QueueFullError at the bound."""
        if self.waiting.is_full(sequence.owner, self._queue):
            wait = 1.0 + 0.1 * len(self.waiting)
            raise QueueFullError(
                f"{len(self.waiting)} requests are waiting, as many as the queue holds; "
                f"try again in {wait:.0f} s or give the engine a longer queue",
                retry_after=wait,
            )
        self.waiting.append(sequence, (*self.active, *self.parked))

    def join(self, sequence: Running) -> None:
        """Take in a fork, beside its parent."""
        bisect.insort(self.active, sequence, key=_arrival)

    def remove(self, sequence: Running) -> None:
        """Forget a sequence."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        for queue in (self.active, self.parked):
            if sequence in queue:
                queue.remove(sequence)
                self.waiting.settle(sequence)
        self.failed = [(other, error) for other, error in self.failed if other is not sequence]

    def schedule(self) -> Scheduled:
        """Make room for the active, bring back the parked, admit the waiting; then pick the step's work.

        A sequence for which this fails otherwise than for want of room is among `stuck`, and in no queue. It holds its
        bytes until the step is over: whoever lacks room beside it waits for that, as beside others (`others_hold`).
        """
        without_room = self._make_room()
        if not (without_room or self.failed or self.waiting or self.parked) and all(map(_is_decoding, self.active)):
            return Scheduled(list(self.active), None, [])  # as in most steps
        refused = self._restore() or self._admit()
        self.lacks_room = refused is not None
        if refused is not None and not self.active:
            without_room.append(refused)
        able = [sequence for sequence in self.active if all(sequence is not other for other, _ in without_room)]
        decode = [sequence for sequence in able if sequence.state is State.DECODING]
        prefill = next((sequence for sequence in able if sequence.state is State.PREFILLING), None)
        if without_room and self.others_hold():
            without_room = []
        return Scheduled(decode, prefill, list(self.failed) if self.failed else without_room)

    def park_youngest(self) -> Running | None:
        """Park the youngest active sequence, unless it is the only one. Returns it also where it failed instead."""
        if len(self.active) < 2:
            return None
        sequence = self.active[-1]
        try:
            self._memory.park(sequence)
        except BaseException as error:
            self._fail(sequence, error, self.active)
            return sequence
        self.active.remove(sequence)
        sequence.parked = True
        sequence.answer.usage.preemptions += 1
        bisect.insort(self.parked, sequence, key=_arrival)
        return sequence

    def _make_room(self) -> list[tuple[Running, BaseException]]:
        """Oldest first, so that what is missing is taken from the youngest. Returns who has no room even alone."""
        place = 0
        while place < len(self.active):
            sequence = self.active[place]
            refusal = self._try(self._memory.cover, sequence, self.active)
            if refusal is None:
                place += 1
            elif isinstance(refusal, BudgetError) and self.park_youngest() is None:
                return [(sequence, refusal)]
        return []

    def _restore(self) -> tuple[Running, BudgetError] | None:
        """Bring parked sequences back while they fit, oldest first. Returns the one that did not fit, if any."""
        while self.parked and len(self.active) < self._batch:
            sequence = self.parked[0]
            refusal = self._try(lambda parked: self._memory.restore(parked, len(self.active)), sequence, self.parked)
            if isinstance(refusal, BudgetError):
                return sequence, refusal
            if refusal is None:
                self.parked.remove(sequence)
                sequence.parked = False
                bisect.insort(self.active, sequence, key=_arrival)
        return None

    def _admit(self) -> tuple[Running, BudgetError] | None:
        """Start new requests while they fit: none past a parked one, and one prefill at a time."""
        while self.waiting and not self.parked and len(self.active) < self._batch:
            if any(active.state is State.PREFILLING for active in self.active):
                return None
            sequence = self.waiting.first(self.active)
            if len(self.active) + sequence.samples > self._batch:
                return None
            refusal = self._try(self._memory.admit, sequence, self.waiting)
            if isinstance(refusal, BudgetError):
                return sequence, refusal
            if refusal is None:
                self.waiting.remove(sequence)
                sequence.state = State.PREFILLING
                bisect.insort(self.active, sequence, key=_arrival)
        return None

    def _try(self, take: Callable[[Running], None], sequence: Running, queue: Queue) -> BaseException | None:
        """Ask the memory. None where it succeeded. A BudgetError leaves the sequence where it is, after any other error
        it is among those that failed.
        """
        try:
            take(sequence)
        except BudgetError as error:
            return error
        except BaseException as error:
            self._fail(sequence, error, queue)
            return error
        return None

    def _fail(self, sequence: Running, error: BaseException, queue: Queue) -> None:
        queue.remove(sequence)
        self.failed.append((sequence, error))


def _nobody() -> bool:
    return False


def _is_decoding(sequence: Running) -> bool:
    return sequence.state is State.DECODING


def _arrival(sequence: Running) -> int:
    return sequence.arrival
