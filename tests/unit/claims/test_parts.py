"""Verdicts follow from intervals: on both sides of a bar, on it, void, missing; and what a headline needs beside it."""

from __future__ import annotations

import math

import pytest

from thrifty.claims.harness.claim import Measurement
from thrifty.claims.harness.controls import Control, ControlError, check
from thrifty.claims.harness.parts import Bar, Part, Verdict, ahead, exactly, kept, times
from thrifty.claims.harness.statistics import Scores
from thrifty.evaluation.recovery import Interval

HOLDS, FAILS, OPEN, UNTESTABLE = Verdict.HOLDS, Verdict.FAILS, Verdict.INCONCLUSIVE, Verdict.UNTESTABLE


@pytest.mark.parametrize(
    ("low", "high", "bar", "verdict"),
    [
        (0.96, 1.0, Bar(0.95), HOLDS),
        (0.95, 1.0, Bar(0.95), HOLDS),
        (0.95, 1.0, Bar(0.95, strict=True), OPEN),
        (0.90, 0.95, Bar(0.95), OPEN),
        (0.90, 0.949, Bar(0.95), FAILS),
        (0.90, 0.95, Bar(0.95, strict=True), FAILS),
        (0.0, 0.0, Bar(0.0, strict=True), FAILS),
        (0.8, 1.2, Bar(1.0), OPEN),
        (1.0, 2.0, Bar(2.0, at_least=False), HOLDS),
        (1.0, 2.0, Bar(2.0, at_least=False, strict=True), OPEN),
        (2.1, 3.0, Bar(2.0, at_least=False), FAILS),
        (2.0, 3.0, Bar(2.0, at_least=False), OPEN),
        (2.0, 3.0, Bar(2.0, at_least=False, strict=True), FAILS),
    ],
)
def test_the_whole_interval_must_lie_on_one_side(low: float, high: float, bar: Bar, verdict: Verdict) -> None:
    assert Part("p", Interval((low + high) / 2, low, high), bar).verdict() is verdict


def test_a_void_timing_decides_nothing_whatever_it_shows() -> None:
    for value in (0.1, 99.0):
        part = Part("faster", Interval(value, value, value), Bar(3.6), void="others took 30% of the machine")
        assert part.verdict() is OPEN and "VOID: others took 30%" in part.told()
    fast = Scores((10.0, 11.0), ("round 0", "round 1"), bounded=False, void="others took 30% of the machine")
    slow = Scores((1.0, 1.1), ("round 0", "round 1"), bounded=False)
    assert times("faster", fast, slow, Bar(3.6)).verdict() is OPEN
    assert times("faster", slow, fast, Bar(3.6)).verdict() is OPEN


def test_what_is_missing_is_not_testable_and_says_what() -> None:
    part = Part("recall", missing="a model that answers", bar=Bar(1.0))
    assert part.verdict() is UNTESTABLE and part.told() == "recall: not testable (a model that answers)"
    nothing = Scores((0.0, 0.0), ("a", "b"))
    assert kept("recall", nothing, nothing, Bar(0.9)).verdict() is UNTESTABLE


def test_parts_are_refused_that_say_nothing() -> None:
    with pytest.raises(ValueError, match="neither an estimate nor a reason"):
        Part("p")
    with pytest.raises(ValueError, match="an interval has finite ends"):
        Part("p", Interval(1.0, -math.inf, 2.0))
    with pytest.raises(ValueError, match="has no bar, so nothing would decide"):
        Measurement(Part("p", Interval(1.0, 1.0, 1.0)))


GOOD = exactly("ours", 1.0, Bar(0.9))
BAD = exactly("ours", 0.5, Bar(0.9))
STRADDLING = Part("ours", Interval(0.9, 0.8, 1.0), Bar(0.9))
MISSING = Part("ours", missing="more memory")
LOST = Control("random", "lose", Interval(-0.5, -0.6, -0.4))
UNCLEAR = Control("random", "lose", Interval(-0.1, -0.3, 0.1))


def test_parts_never_lift_the_headline() -> None:
    assert Measurement(BAD, parts=(GOOD, GOOD)).verdict() is FAILS
    assert Measurement(STRADDLING, parts=(GOOD, GOOD)).verdict() is OPEN
    assert Measurement(GOOD, parts=(BAD, MISSING)).verdict() is HOLDS
    assert Measurement(MISSING, parts=(GOOD,)).verdict() is UNTESTABLE
    assert Measurement.untestable("recall", "a larger model").verdict() is UNTESTABLE


def test_a_headline_needs_its_gates_and_controls_that_can_tell() -> None:
    assert Measurement(GOOD, gates=(GOOD,), controls=(LOST,)).verdict() is HOLDS
    assert Measurement(GOOD, gates=(GOOD, BAD)).verdict() is FAILS
    assert Measurement(STRADDLING, gates=(BAD,)).verdict() is FAILS
    assert Measurement(GOOD, gates=(STRADDLING,)).verdict() is OPEN
    assert Measurement(GOOD, gates=(MISSING,)).verdict() is OPEN
    assert Measurement(GOOD, controls=(UNCLEAR,)).verdict() is OPEN
    assert Measurement(BAD, controls=(UNCLEAR,)).verdict() is FAILS


def test_swapping_ours_and_the_rival_turns_the_verdict() -> None:
    contexts = tuple(map(str, range(40)))
    better, worse = Scores((1.0,) * 40, contexts), Scores((0.0,) * 40, contexts)
    assert ahead("ahead", better, worse).verdict() is HOLDS
    assert ahead("ahead", worse, better).verdict() is FAILS
    assert ahead("ahead", better, better).verdict() is OPEN


def test_a_control_that_contradicts_ends_the_run() -> None:
    check((LOST, UNCLEAR, Control("full", "hold", Interval(0.0, -0.1, 0.1)), Control("n", "shown", Interval(9, 9, 9))))
    for wrong in (
        Control("random", "lose", Interval(0.2, 0.1, 0.3)),
        Control("full budget", "hold", Interval(-0.2, -0.3, -0.1)),
    ):
        with pytest.raises(ControlError, match=f"{wrong.name} .* there is no verdict|there is no verdict"):
            check((LOST, wrong))


def test_figures_are_written_in_their_unit() -> None:
    interval = Interval(0.5, 0.25, 0.75)
    assert Part("kept", interval, Bar(0.9)).told() == "kept 50.0 % (25.0 % to 75.0 %; ≥ 90.0 %)"
    assert Part("ahead", interval, unit="points").told() == "ahead +50.0 (+25.0 to +75.0)"
    assert (
        Part("faster", interval, Bar(2, at_least=False), unit="times").told()
        == "faster 0.50 × (0.25 × to 0.75 ×; ≤ 2.00 ×)"
    )
    assert Part("kept", interval).power == 0.25
    assert exactly("bytes", 0.25, Bar(0.3, at_least=False)).told() == "bytes 25.0 % (≤ 30.0 %)"
    assert exactly("bytes", 0.25, None).told() == "bytes 25.0 %"
