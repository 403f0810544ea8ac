"""The scheduler alone, over a memory that only counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from thrifty.engine.running import State
from thrifty.engine.scheduler import Scheduled, Scheduler
from thrifty.errors import BudgetError, QueueFullError


class CountingMemory:
    """A budget in units. A sequence needs its `size` to be admitted, and one unit more each step."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.held: dict[int, int] = {}

    def _take(self, sequence: Any, units: int) -> None:
        if sum(self.held.values()) + units > self.budget:
            raise BudgetError(f"{units} more do not fit {self.budget}")
        self.held[sequence.arrival] = self.held.get(sequence.arrival, 0) + units

    def admit(self, sequence: Any) -> None:
        self._take(sequence, sequence.size)

    def cover(self, sequence: Any) -> None:
        if sequence.grows:
            self._take(sequence, 1)
            sequence.size += 1

    def park(self, sequence: Any) -> None:
        del self.held[sequence.arrival]

    def restore(self, sequence: Any, beside: int) -> None:
        self._take(sequence, sequence.size + 1)
        self.held[sequence.arrival] -= 1


def sequence(arrival: int, size: int = 3, grows: bool = True) -> Any:
    usage = SimpleNamespace(preemptions=0)
    return SimpleNamespace(
        arrival=arrival,
        size=size,
        grows=grows,
        state=State.WAITING,
        parked=False,
        samples=1,
        owner="",
        priority=0,
        cost=0,
        answer=SimpleNamespace(usage=usage),
    )


def decode_all(work: Scheduled) -> None:
    """What the engine does with a prefill: here it takes one step."""
    if work.prefill is not None:
        work.prefill.state = State.DECODING


def arrivals(sequences: list[Any]) -> list[int]:
    return [one.arrival for one in sequences]


def test_first_come_first_served_one_prefill_at_a_time() -> None:
    scheduler = Scheduler(CountingMemory(100), batch=8, queue=8)
    for arrival in range(3):
        scheduler.submit(sequence(arrival))
    work = scheduler.schedule()
    assert (work.decode, work.prefill.arrival) == ([], 0)
    assert scheduler.schedule().prefill.arrival == 0, "the next waits until the first is prefilled"
    decode_all(work)
    work = scheduler.schedule()
    assert (arrivals(work.decode), work.prefill.arrival) == ([0], 1)


def test_the_batch_is_bounded() -> None:
    scheduler = Scheduler(CountingMemory(100), batch=2, queue=8)
    for arrival in range(4):
        scheduler.submit(sequence(arrival))
    for _ in range(6):
        decode_all(scheduler.schedule())
    assert arrivals(scheduler.active) == [0, 1]
    scheduler.remove(scheduler.active[0])
    assert scheduler.schedule().prefill.arrival == 2


def test_a_full_queue_says_when_to_come_back() -> None:
    scheduler = Scheduler(CountingMemory(100), batch=1, queue=2)
    scheduler.submit(sequence(0))
    scheduler.submit(sequence(1))
    with pytest.raises(
        QueueFullError, match="2 requests are waiting, as many as the queue holds; try again in"
    ) as caught:
        scheduler.submit(sequence(2))
    assert caught.value.retry_after > 0


def test_under_pressure_the_youngest_is_parked_and_returns_in_order() -> None:
    memory = CountingMemory(12)
    scheduler = Scheduler(memory, batch=4, queue=4)
    for arrival in range(3):
        scheduler.submit(sequence(arrival))
    while not scheduler.parked:
        decode_all(scheduler.schedule())
    assert arrivals(scheduler.parked) == [2]
    assert scheduler.active[0].arrival == 0
    while len(scheduler.parked) < 2:
        decode_all(scheduler.schedule())
    assert arrivals(scheduler.parked) == [1, 2]
    memory.held.pop(0)
    scheduler.remove(scheduler.active[0])
    scheduler.schedule()
    assert scheduler.active[0].arrival == 1, "the oldest returns first"
    assert scheduler.active[0].answer.usage.preemptions == 1


def test_nobody_is_admitted_past_a_parked_sequence() -> None:
    memory = CountingMemory(12)
    scheduler = Scheduler(memory, batch=4, queue=4)
    for arrival in range(2):
        scheduler.submit(sequence(arrival, size=4))
    while not scheduler.parked:
        decode_all(scheduler.schedule())
    scheduler.submit(sequence(9, size=1, grows=False))
    scheduler.schedule()
    assert arrivals(scheduler.waiting) == [9]


def test_one_that_cannot_go_on_alone_is_reported_not_raised() -> None:
    scheduler = Scheduler(CountingMemory(5), batch=4, queue=4)
    scheduler.submit(sequence(0, size=3))
    stuck: list[Any] = []
    for _ in range(10):
        work = scheduler.schedule()
        decode_all(work)
        stuck += work.stuck
    assert stuck
    assert stuck[0][0].arrival == 0
    assert "1 more do not fit 5" in str(stuck[0][1])


def test_a_head_that_never_fits_is_reported_once_nothing_else_runs() -> None:
    scheduler = Scheduler(CountingMemory(5), batch=4, queue=4)
    scheduler.submit(sequence(0, size=9))
    work = scheduler.schedule()
    assert [one.arrival for one, _ in work.stuck] == [0]


class FailingMemory(CountingMemory):
    """Fails for one sequence in one call, otherwise than for want of room."""

    def __init__(self, budget: int, call: str, arrival: int) -> None:
        super().__init__(budget)
        original = getattr(self, call)

        def failing(sequence: Any, *more: Any) -> None:
            if sequence.arrival == arrival:
                raise OSError("the disk is gone")
            original(sequence, *more)

        setattr(self, call, failing)


@pytest.mark.parametrize("call", ["admit", "cover", "park", "restore"])
def test_one_that_fails_is_reported_and_in_nobodys_way(call: str) -> None:
    scheduler = Scheduler(FailingMemory(40 if call == "cover" else 12, call, 2), batch=4, queue=8)
    for arrival in range(4):
        scheduler.submit(sequence(arrival))
    work = scheduler.schedule()
    for _ in range(30):
        if work.stuck:
            break
        decode_all(work)
        if call == "restore" and len(scheduler.parked) == 2:
            scheduler.remove(scheduler.active[0])
            scheduler.remove(scheduler.parked[0])
        work = scheduler.schedule()
    assert [(one.arrival, str(error)) for one, error in work.stuck] == [(2, "the disk is gone")]
    failed = work.stuck[0][0]
    assert failed not in (*scheduler.waiting, *scheduler.active, *scheduler.parked)
    assert any(one is failed for one in scheduler.sequences()), "until the engine has ended it"
    scheduler.remove(failed)
    assert not any(one is failed for one in scheduler.sequences())
    assert scheduler.schedule().stuck == []


def test_one_that_is_stuck_does_not_run() -> None:
    scheduler = Scheduler(CountingMemory(5), batch=4, queue=4)
    scheduler.submit(sequence(0, size=3))
    work = scheduler.schedule()
    while not work.stuck:
        decode_all(work)
        work = scheduler.schedule()
    assert (work.decode, work.prefill) == ([], None)


def test_nobody_is_refused_for_the_bytes_of_one_that_failed() -> None:
    """They are free again after this step: one that waits is admitted then, one that grows goes on then."""
    memory = FailingMemory(5, "cover", 0)
    scheduler = Scheduler(memory, batch=4, queue=4)
    scheduler.submit(sequence(0, size=3))
    scheduler.submit(sequence(1, size=4))
    decode_all(scheduler.schedule())
    work = scheduler.schedule()
    assert [one.arrival for one, _ in work.stuck] == [0] and not work.decode
    end(scheduler, memory, work.stuck[0][0])
    work = scheduler.schedule()
    assert not work.stuck and work.prefill is not None and work.prefill.arrival == 1


def test_one_that_grows_beside_one_that_failed_waits_a_step() -> None:
    memory = FailingMemory(8, "cover", 1)
    scheduler = Scheduler(memory, batch=4, queue=4)
    scheduler.submit(sequence(0, size=3))
    scheduler.submit(sequence(1, size=3, grows=False))
    work = scheduler.schedule()
    while not work.stuck:
        decode_all(work)
        work = scheduler.schedule()
    assert [one.arrival for one, _ in work.stuck] == [1]
    failed = work.stuck[0][0]
    work = scheduler.schedule()
    assert (work.decode, [one.arrival for one, _ in work.stuck]) == ([], [1]), "there is no room beside it"
    end(scheduler, memory, failed)
    work = scheduler.schedule()
    assert not work.stuck and arrivals(work.decode) == [0]


def end(scheduler: Scheduler, memory: CountingMemory, failed: Any) -> None:
    """As the engine ends one that failed."""
    scheduler.remove(failed)
    del memory.held[failed.arrival]
