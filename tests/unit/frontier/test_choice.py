"""Which row wins, and what is said where none can."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from thrifty.evaluation.quality import Quality
from thrifty.evaluation.recovery import Interval
from thrifty.frontier import choice
from thrifty.frontier.candidates import Candidate, Grid
from thrifty.frontier.measurement import (
    DIVERGENCE,
    TASKS,
    Measurement,
    Need,
    Prediction,
    Scored,
    mean_of,
    on_frontier,
)
from thrifty.recipe import Recipe

MB = 10**6


def row(
    name: str,
    *,
    peak: int,
    kl: float | None,
    decode: float = 100.0,
    fits: bool = True,
    grid: Grid = Grid.SHIPPED,
    recovery: float | None = None,
    **more: Any,
) -> Measurement:
    tasks = {} if recovery is None else {"recall": Scored(0.5, Interval(recovery, recovery, recovery), 8)}
    exactly = Interval(kl or 0.0, kl or 0.0, kl or 0.0)
    return Measurement(
        candidate=Candidate(Recipe(name=name), grid),
        need=Need(peak - 2 * MB, MB, MB, MB),
        fits=fits,
        prompt=1024,
        ledger_peak=peak,
        ledger_steady=peak,
        process_peak=peak,
        prefill_rate=1000.0,
        decode_rate=decode,
        quality=None if kl is None else Quality(exactly, exactly, None, 2.0, 256),
        stage=DIVERGENCE if recovery is None else TASKS,
        rung=0 if recovery is None else 2,
        tasks=tasks,
        **more,
    )


def test_the_least_divergence_that_fits_wins() -> None:
    rows = [
        row("baseline", peak=191 * MB, kl=None, fits=False),
        row("close", peak=140 * MB, kl=0.01),
        row("far", peak=90 * MB, kl=0.2, decode=300.0),
    ]
    assert choice.best(rows) is rows[1]


def test_a_tie_goes_to_the_faster() -> None:
    rows = [row("slow", peak=100 * MB, kl=0.01), row("fast", peak=120 * MB, kl=0.01 + choice.TIE / 2, decode=150.0)]
    assert choice.best(rows) is rows[1]
    clear = row("fast but worse", peak=100 * MB, kl=0.01 + 3 * choice.TIE, decode=500.0)
    assert choice.best([*rows, clear]) is rows[1]


def test_the_uncompressed_model_wins_where_it_fits() -> None:
    rows = [row("baseline", peak=191 * MB, kl=None), row("close", peak=140 * MB, kl=0.01, decode=500.0)]
    assert choice.best(rows) is rows[0]


def test_off_grid_rows_and_rows_that_do_not_fit_cannot_win() -> None:
    rows = [row("off", peak=90 * MB, kl=0.0, grid=Grid.OFF), row("big", peak=200 * MB, kl=0.0, fits=False)]
    assert choice.best(rows) is None
    assert choice.best([]) is None


def test_the_frontier_leaves_out_what_another_row_beats() -> None:
    good = row("good", peak=100 * MB, kl=0.01)
    beaten = row("beaten", peak=110 * MB, kl=0.02, decode=90.0)
    small = row("small", peak=80 * MB, kl=0.3)
    off = row("off", peak=10 * MB, kl=0.0, decode=900.0, grid=Grid.OFF)
    rows = [good, beaten, small, off]
    assert [on_frontier(one, rows) for one in rows] == [True, False, True, False]


def test_the_highest_recovery_wins_and_divergence_breaks_ties() -> None:
    rows = [
        row("close", peak=100 * MB, kl=0.02, recovery=0.990),
        row("as good", peak=100 * MB, kl=0.01, recovery=0.987),
        row("less", peak=100 * MB, kl=0.001, recovery=0.97, decode=900.0),
    ]
    assert choice.best(rows) is rows[1]
    assert choice.best([rows[0], rows[2]]) is rows[0]


def test_more_than_the_baseline_scores_is_luck() -> None:
    rows = [row("lucky", peak=MB, kl=0.5, recovery=1.3), row("true", peak=MB, kl=0.01, recovery=1.0)]
    assert choice.best(rows) is rows[1]


def test_rows_that_came_further_are_chosen_before_rows_that_did_not() -> None:
    rows = [row("short", peak=MB, kl=0.001), row("whole", peak=MB, kl=0.01, recovery=0.9)]
    assert choice.best(rows) is rows[1]
    assert choice.best([rows[0], row("big", peak=MB, kl=0.01, recovery=0.9, fits=False)]) is rows[0]


def test_bounds_on_latency_and_recovery_exclude() -> None:
    slow, poor = row("slow", peak=MB, kl=0.0, recovery=1.0, quick=False), row("poor", peak=MB, kl=0.1, recovery=0.9)
    assert choice.best([slow, poor]) is poor
    assert choice.best([slow, poor], min_recovery=0.95) is None
    assert choice.best([row("unknown", peak=MB, kl=0.0)], min_recovery=0.95) is None


def test_a_task_without_recovery_takes_no_part() -> None:
    undefined = Scored(0.0, None, 8)
    one = dataclasses.replace(row("one", peak=MB, kl=0.1, recovery=0.9), tasks={"a": undefined})
    assert one.recovery is None and one.as_dict()["tasks"]["a"]["recovery"] is None
    half = Scored(0.4, Interval(0.5, 0.4, 0.6), 8)
    assert dataclasses.replace(one, tasks={"a": undefined, "b": half}).recovery == Interval(0.5, 0.4, 0.6)
    assert row("baseline", peak=MB, kl=None, recovery=0.1).recovery == Interval(1.0, 1.0, 1.0)


def test_errors_of_independent_tasks_add_in_squares() -> None:
    found = mean_of([Interval(1.0, 0.7, 1.0), Interval(0.5, 0.1, 0.6)])
    assert found.value == 0.75 and found.low == pytest.approx(0.5) and found.high == pytest.approx(0.8)


def prediction(name: str, need: Need, seconds: float = 0.01) -> Prediction:
    return Prediction(Candidate(Recipe(name=name), Grid.SHIPPED), need, seconds, MB, 0.001)


def test_where_nothing_fits_the_message_says_by_how_much_and_what_would() -> None:
    needs = [
        prediction("a + b", Need(70 * MB, 5 * MB, 20 * MB, 15 * MB)),
        prediction("big", Need(100 * MB, 5 * MB, 90 * MB, 90 * MB)),
    ]
    message = str(choice.refuse_memory(needs, 90 * MB, 4096, 1, 1800))
    assert message == (
        "nothing fits 90 MB at context 4096: the smallest recipe, a + b, needs 95 MB (70 MB weights, 20 MB cache, "
        "5 MB workspace), 5 MB more. It would fit with --memory 95MB, or with --context 1800."
    )
    assert str(choice.refuse_memory(needs, 50 * MB, 4096, 1, 0)).endswith("--memory 95MB; no context is short enough.")
    assert "at context 4096, batch 3:" in str(choice.refuse_memory(needs, 50 * MB, 4096, 3, 0))


def test_where_nothing_is_fast_enough_the_message_says_by_how_much() -> None:
    need = Need(MB, MB, MB, MB)
    message = str(choice.refuse_latency([prediction("a", need, 0.009), prediction("b", need)], 0.008, 4096, 1))
    assert message == (
        "nothing decodes within 8ms at context 4096: of 2 recipes that fit the memory, the fastest, a, reads for 9ms a "
        "step at this machine's bandwidth, 1ms more, and computing takes longer still. Ask for more than --latency "
        "9.45ms, for less --context, or give more --memory."
    )
