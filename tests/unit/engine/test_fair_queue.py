"""Who is admitted next: owners by what they were served, priorities, and nobody for ever last."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from tests.tiny import text_tokens, tiny_model

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.admission.fair_queue import PATIENCE, STEPS, FairQueue
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.errors import PromptError, QueueFullError


class Time:
    """A clock that the test turns."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def sequence(arrival: int, owner: str = "", priority: int = 0, cost: float = 10) -> Any:
    return SimpleNamespace(arrival=arrival, owner=owner, priority=priority, cost=cost)


def order(queue: FairQueue, running: list[Any] | None = None, ends: bool = True) -> list[int]:
    """The arrivals in which all are admitted, each over before the next."""
    found = []
    while len(queue):
        own = queue.first(running or [])
        queue.remove(own)
        if ends:
            queue.settle(own)
        found.append(own.arrival)
    return found


def test_one_owner_is_served_in_the_order_of_arrival() -> None:
    queue = FairQueue()
    for arrival in (3, 5, 9):
        queue.append(sequence(arrival, cost=100 - arrival))
    assert order(queue) == [3, 5, 9] and len(queue) == 0


def test_an_owner_with_a_hundred_requests_does_not_hold_up_another() -> None:
    queue = FairQueue()
    for arrival in range(100):
        queue.append(sequence(arrival, "many"))
    for arrival in range(100, 104):
        queue.append(sequence(arrival, "few"))
    assert order(queue)[:9] == [0, 100, 1, 101, 2, 102, 3, 103, 4]


def test_being_served_is_counted_in_tokens() -> None:
    queue = FairQueue()
    for arrival in range(6):
        queue.append(sequence(arrival, "long" if arrival < 3 else "short", cost=30 if arrival < 3 else 10))
    assert order(queue) == [0, 3, 4, 5, 1, 2]


def test_what_runs_counts_before_it_is_over() -> None:
    queue = FairQueue()
    queue.append(sequence(1, "a"))
    queue.append(sequence(2, "b"))
    assert queue.first([sequence(0, "a", cost=50), sequence(9, "b", cost=60)]).arrival == 1
    assert queue.first([sequence(0, "a", cost=70), sequence(9, "b", cost=60)]).arrival == 2


def test_an_owner_that_was_away_has_saved_up_nothing() -> None:
    queue = FairQueue()
    for arrival in range(20):
        queue.append(sequence(arrival, "there"))
    for _ in range(10):
        own = queue.first([])
        queue.remove(own)
        queue.settle(own)
    for arrival in range(20, 40):
        queue.append(sequence(arrival, "new"))
    assert Counter(arrival >= 20 for arrival in order(queue)[:10]) == {True: 5, False: 5}


def test_an_owner_that_took_much_and_left_pays_when_it_is_back() -> None:
    queue = FairQueue()
    other = sequence(0, "other", cost=0)
    queue.append(sequence(1, "greedy", cost=100), [other])
    queue.remove(own := queue.first([other]))
    queue.settle(own)
    queue.append(sequence(2, "greedy"), [other])
    queue.append(sequence(3, "other"), [other])
    assert order(queue, [other]) == [3, 2]


def test_higher_priorities_go_first_and_owners_are_equal_within_one() -> None:
    queue = FairQueue()
    for arrival, (owner, priority) in enumerate([("a", 0), ("a", 1), ("a", 1), ("b", 1), ("b", -1)]):
        queue.append(sequence(arrival, owner, priority))
    assert order(queue) == [1, 3, 2, 0, 4]


def test_a_low_priority_is_not_put_off_for_ever() -> None:
    clock = Time()
    queue = FairQueue(clock)
    queue.append(sequence(0, "low", 0, cost=1))
    admitted = []
    for arrival in range(1, 60):
        queue.append(sequence(arrival, "high", 2))
        own = queue.first([])
        queue.remove(own)
        queue.settle(own)
        admitted.append(own.arrival)
        clock.now += PATIENCE / 10
        if own.arrival == 0:
            break
    assert admitted[-1] == 0 and clock.now <= 2.2 * PATIENCE


def test_no_distance_of_priorities_puts_off_for_hours() -> None:
    clock = Time()
    queue = FairQueue(clock)
    queue.append(sequence(0, priority=-1000))
    for arrival, waited in ((1, 0), (2, 5 * PATIENCE), (3, STEPS * PATIENCE - 1)):
        clock.now = waited
        queue.append(sequence(arrival, priority=1000))
        first = queue.first([])
        assert first.arrival == arrival
        queue.remove(first)
    clock.now = STEPS * PATIENCE
    queue.append(sequence(4, priority=1000))
    assert queue.first([]).arrival == 0


def test_patience_never_goes_beyond_the_priorities_that_wait() -> None:
    clock = Time()
    queue = FairQueue(clock)
    queue.append(sequence(0, "many"))
    queue.settle(sequence(9, "many", cost=100))
    clock.now = 100 * PATIENCE
    queue.append(sequence(1, "few"), [sequence(8, "few", cost=0)])
    assert queue.first([]).arrival == 1, "a long wait of the same priority is no privilege"


def test_a_full_queue_keeps_a_part_for_each_owner() -> None:
    queue = FairQueue()
    for arrival in range(8):
        assert not queue.is_full("a", 8)
        queue.append(sequence(arrival, "a"))
    assert queue.is_full("a", 8) and not queue.is_full("b", 8)
    for arrival in range(8, 12):
        assert not queue.is_full("b", 8)
        queue.append(sequence(arrival, "b"))
    assert queue.is_full("b", 8) and queue.is_full("a", 8) and not queue.is_full("c", 8)


def test_counts_of_owners_that_left_are_forgotten() -> None:
    queue = FairQueue()
    for arrival in range(1000):
        queue.append(own := sequence(arrival, f"owner {arrival}", cost=1))
        queue.remove(own)
        queue.settle(own)
    queue.append(sequence(1000, "last"))
    assert len(queue._served) <= 2


def test_an_engine_serves_owners_evenly_and_answers_stay_the_same() -> None:
    def run(owners: list[str], queue: int = 64) -> tuple[list[str], list[list[int]]]:
        engine = Engine(tiny_model(packed=True), threads=1, batch=2, queue=queue)
        ended: list[str] = []
        sampling = SamplingParameters(max_tokens=8, ignore_eos=True)
        try:
            handles = [
                engine.submit(Request(prompt=text_tokens(40, place), sampling=sampling, owner=owner))
                for place, owner in enumerate(owners)
            ]
            while engine.busy:
                engine.step()
                ended += [
                    owner
                    for owner, handle in zip(owners, handles, strict=True)
                    if handle.finished and ended.count(owner) < sum(
                        other.finished for name, other in zip(owners, handles, strict=True) if name == owner
                    )
                ]  # fmt: skip
            return ended, [handle.result().token_ids for handle in handles]
        finally:
            engine.close()

    ended, fair = run(["many"] * 12 + ["few"] * 3)
    assert ended.index("few") < 4 and ended[:8].count("few") == 3
    assert fair == run([""] * 15)[1]
    with pytest.raises(QueueFullError):
        run([""] * 15, queue=8)
    run(["many"] * 8 + ["few"] * 2, queue=8)


@pytest.mark.parametrize("fields", [{"priority": 1001}, {"priority": -1001}, {"priority": 1.5}, {"owner": 3}])
def test_what_is_no_priority_and_no_owner_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(PromptError):
        Request(prompt=(1,), **fields)
