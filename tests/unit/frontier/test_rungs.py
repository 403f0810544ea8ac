"""Who goes on: against a slow and obvious non-dominated sort."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from thrifty.evaluation.quality import Quality
from thrifty.evaluation.recovery import Interval
from thrifty.frontier.candidates import Candidate, Grid
from thrifty.frontier.measurement import TASKS, Measurement, Need, Scored
from thrifty.frontier.rungs import ladder, objectives, survivors
from thrifty.recipe import Recipe

Points = list[tuple[int, float, float]]


def rows_of(points: Points) -> list[Measurement]:
    return [row(index, *point) for index, point in enumerate(points)]


def row(index: int, peak: int, seconds: float, kl: float) -> Measurement:
    exactly = Interval(kl, kl, kl)
    return Measurement(
        candidate=Candidate(Recipe(cache=[{"technique": "kivi", "residual": index}]), Grid.SHIPPED),
        need=Need(peak, 0, 0, 0),
        fits=True,
        prompt=1024,
        ledger_peak=1,
        ledger_steady=1,
        process_peak=1,
        prefill_rate=1.0,
        decode_rate=1.0,
        quality=Quality(exactly, exactly, None, 1.0, 8),
        predicted=seconds,
    )


coordinates = st.integers(0, 6)
point_lists = st.lists(
    st.tuples(coordinates, coordinates.map(float), coordinates.map(float)), min_size=1, max_size=12, unique=True
)


@given(point_lists, st.integers(1, 12), st.integers(0, 3))
def test_survivors_hold_the_least_divergence_and_then_the_first_front(points: Points, seats: int, seed: int) -> None:
    rows = rows_of(points)
    chosen = survivors(rows, seats, seed)
    assert len({one.candidate.key for one in chosen}) == len(chosen) == min(seats, len(rows))
    assert chosen[0].kl == min(one.kl for one in rows)
    if len(chosen) > 1:
        beaten = {
            objectives(one)
            for one in rows
            if any(
                all(a <= b for a, b in zip(objectives(other), objectives(one), strict=True))
                and objectives(other) != objectives(one)
                for other in rows
            )
        }
        front = [objectives(one) for one in rows if objectives(one) not in beaten]
        assert len(front) == 1 or any(objectives(one) in front for one in chosen[:2])
    assert [one.candidate.key for one in survivors(rows[::-1], seats, seed)] == [one.candidate.key for one in chosen]


def test_of_equal_rows_one_goes_on() -> None:
    rows = rows_of([(5, 1.0, 0.1), (5, 1.0, 0.1), (6, 1.0, 0.2)])
    assert len(survivors(rows, 3, 0)) == 2


def test_a_row_that_is_worse_in_everything_is_the_last_to_go_on() -> None:
    rows = rows_of([(5, 1.0, 0.1), (4, 2.0, 0.3), (9, 9.0, 0.9), (6, 0.5, 0.2)])
    assert rows[2] not in survivors(rows, 3, 0)


def test_one_of_each_way_to_compress_goes_on_before_a_second_of_any() -> None:
    rows = [
        dataclasses.replace(one, candidate=Candidate(Recipe(cache=[{"technique": name, **options}]), Grid.SHIPPED))
        for one, (name, options) in zip(
            rows_of([(9, 1.0, 0.1), (8, 1.0, 0.2), (5, 1.0, 0.9)]),
            [("snapkv", {"capacity": 512}), ("snapkv", {"capacity": 256}), ("kivi", {"bits": 2})],
            strict=True,
        )
    ]
    assert survivors(rows, 2, 0) == [rows[0], rows[2]]
    assert survivors(rows, 3, 0) == [rows[0], rows[2], rows[1]]


def test_where_tasks_were_asked_what_they_recovered_decides() -> None:
    half, whole = (Scored(one, Interval(one, one, one), 2) for one in (0.5, 1.0))
    rows = rows_of([(5, 1.0, 0.1), (6, 1.0, 0.3), (7, 1.0, 0.2)])
    rows = [
        dataclasses.replace(one, stage=TASKS, tasks={"recall": found})
        for one, found in zip(rows, (half, whole, whole), strict=True)
    ]
    assert survivors(rows, 3, 0) == [rows[2], rows[1], rows[0]]


def test_rungs_grow_and_take_in_fewer() -> None:
    rungs = ladder(3774, 256)
    assert [rung.prefix for rung in rungs] == [1024, 1024, 3774]
    assert [rung.scored for rung in rungs] == [32, 32, 256]
    assert [rung.items for rung in rungs] == [0, 2, None]
    assert [rung.tasks for rung in rungs] == [False, True, True]
    assert [rung.seats(60) for rung in rungs] == [60, 12, 2]
    assert [rung.seats(3) for rung in rungs] == [3, 3, 2]
    assert all(rung.prefix >= 1024 for rung in rungs), "a KL after less than 1024 tokens says little"
