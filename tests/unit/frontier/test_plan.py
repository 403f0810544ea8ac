"""What a search measures is chosen by the model's pace and the time, and said before it begins."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from tests.quiet import make_quiet
from tests.searches import CONTEXT, LOOSE, MACHINE
from tests.tiny import tiny_model

from thrifty.engine.engine import Engine
from thrifty.evaluation.measuring.pace import PROMPT
from thrifty.evaluation.roofline import sizes
from thrifty.frontier import pace, plan
from thrifty.frontier.candidates import BASE
from thrifty.frontier.explain import why
from thrifty.frontier.fit import Fit
from thrifty.frontier.gentleness import gentler
from thrifty.frontier.made_weights import COSTS, SLOW
from thrifty.frontier.pace import Forecast, SearchPace
from thrifty.frontier.question import Question
from thrifty.frontier.state import SearchState
from thrifty.models import Model


@pytest.fixture(autouse=True)
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thrifty.frontier.workshop.this_machine", lambda threads, sparing: MACHINE)
    make_quiet(monkeypatch)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(packed=True)


@pytest.fixture(scope="module")
def predicted(model: Model) -> dict[str, Any]:
    """What recipes take, by key: the same whatever the pace."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("thrifty.frontier.workshop.this_machine", lambda threads, sparing: MACHINE)
        fit = Fit(Question(model, LOOSE, CONTEXT, threads=1, tasks=()))
        fit.predict()
    return {key: one.as_dict() for key, one in fit.predictions.items()}


Planned = Callable[..., Fit]


@pytest.fixture
def planned(model: Model, predicted: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Planned:
    """A search that has begun, of a model that takes `step` seconds a token."""

    def begin(step: float, minutes: float | None, rounding: float = 1e-9, **changes: Any) -> Fit:
        held = SearchPace(192, 20 * step, step, rounding)
        monkeypatch.setattr(pace, "measure", lambda engine, rounding: held)
        state = SearchState(None, {})
        for key, value in predicted.items():
            state.add("prediction", key, value)
        changes = {"tasks": ("recall",)} | changes
        fit = Fit(Question(model, LOOSE, CONTEXT, threads=1, minutes=minutes, **changes), state=state)
        fit.begin()
        return fit

    return begin


def test_a_fast_model_has_everything_measured_at_full_size(planned: Planned) -> None:
    for minutes in (10.0, None):
        fit = planned(1e-5, minutes)
        assert fit.plan is not None and fit.plan.left_out == 0 and fit.plan.sizes == plan.LEVELS[0]
        assert [rung.prefix for rung in fit.rungs] == [1024, 1024, fit.prefix]
        assert (fit.plan.total is None) == (minutes is None)


def test_a_slower_one_has_fewer_recipes_and_then_shorter_texts(planned: Planned) -> None:
    found = [planned(step, 10.0).plan for step in (1e-5, 0.02, 0.04, 0.08, 10.0)]
    plans = [one for one in found if one is not None]
    assert len(plans) == len(found)
    for before, after in itertools.pairwise(plans):
        assert len(after.chosen) <= len(before.chosen) and after.sizes.first <= before.sizes.first
        assert after.sizes.scored <= before.sizes.scored and after.sizes.items <= before.sizes.items
    assert plans[-1].sizes == plan.LEVELS[-1]
    for one in plans[:-1]:
        assert one.total is not None and one.total <= 600 * plan.FILLED
    assert plans[-1].total is not None and plans[-1].total > 600, "too slow for the time, and that is known"
    few = next(one for one in plans if one.left_out)
    assert few.sizes == plan.LEVELS[0], "recipes that cannot be the best go before texts are cut"


def test_weights_that_take_too_long_to_make_are_left_out_and_counted(planned: Planned) -> None:
    """The slowest to make go first; rounding stays whatever its pace, and so does what was asked for."""
    fits = [planned(1e-5, 10.0, rounding) for rounding in (1e-9, 1e-5)]
    every = fits[0].candidates
    assert made(fits[0]).slow == 0 == made(planned(1e-5, None, 1.0)).slow, "without a limit all are measured"
    assert fits[1].dropped()["slow"] == made(fits[1]).slow > 0
    assert made(fits[0]).making > 0

    def kept(limit: float, pinned: frozenset[str] = frozenset()) -> list[set[str]]:
        forecast = fits[1].workshop.forecast(every)
        chosen = plan.affordable(fits[1].question, every, forecast, pinned, limit)
        return [{str(table["technique"]) for table in one.recipe.weights} for one in chosen]

    quick = {name for name, cost in COSTS.items() if cost <= SLOW} | {"rtn"}
    none = set().union(*kept(0.0))
    assert none == quick and set().union(*kept(1e9)) == {*COSTS, "rtn"}
    hqq = [one for one in every if "hqq" in str(one.recipe.weights)]
    some = 1.01 * plan.making_seconds(fits[1].question, hqq, fits[1].workshop.forecast(every))
    assert set().union(*kept(some)) == quick | {"hqq"}, "the next slower one would take more"
    slowest = next(one for one in every if "vptq" in str(one.recipe.weights))
    assert any("vptq" in names for names in kept(0.0, frozenset({slowest.key})))


def made(fit: Fit) -> plan.Plan:
    assert fit.plan is not None
    return fit.plan


def test_what_is_left_out_has_a_gentler_one_in_the_plan(planned: Planned) -> None:
    fit = planned(0.1, 10.0)
    assert fit.plan is not None and fit.plan.left_out > 0
    chosen = list(fit.plan.chosen)
    assert BASE in chosen and fit.dropped()["gentler"] == fit.plan.left_out
    for prediction in fit.predictions.values():
        one = prediction.candidate
        if one not in chosen and not fit.pointless(prediction):
            assert any(gentler(other, one) for other in chosen)


def test_sizes_that_were_asked_for_stand(planned: Planned) -> None:
    fit = planned(1.0, 10.0, prefix=1100, scored=200, items=9, tasks=("recall",))
    assert (fit.rungs[-1].prefix, fit.rungs[-1].scored) == (1100, 200)
    assert fit.exam.count() == 9


@pytest.mark.long
def test_a_plan_is_told_where_the_winner_is_explained(planned: Planned) -> None:
    fit = planned(0.1, 10.0, tasks=())
    list(fit.rows())
    assert fit.plan is not None and fit.best is not None
    assert f"{fit.plan.left_out} do all that another one that fits does, and more" in " ".join(why(fit))
    assert {row.candidate.key for row in fit.measured} == {one.key for one in fit.plan.chosen}


def test_a_last_rung_is_shortened_where_those_before_took_longer(planned: Planned, model: Model) -> None:
    fit = planned(0.02, 20.0)
    assert fit.plan is not None and fit.plan.sizes == plan.LEVELS[0]
    forecast = Forecast(SearchPace(192, 0.4, 0.02, 1e-9), sizes.of_model(model), MACHINE)
    early, last = fit.plan.probe + sum(fit.plan.seconds[:-1]), fit.plan.seconds[-1]

    def after(spent: float, left: float) -> plan.Plan:
        assert fit.plan is not None
        return plan.shortened(fit.plan, fit.question, forecast, fit._exam_of, spent, left)

    assert after(early, last) == fit.plan == after(early / 2, last), "what was forecast is left"
    less, least = after(2 * early, 1.2 * last), after(2 * early, 1.0)
    for one in (less, least):
        assert one.seconds[:-1] == fit.plan.seconds[:-1] and one.seconds[-1] < last
        assert (one.sizes.first, one.sizes.length) == (fit.plan.sizes.first, fit.plan.sizes.length)
    assert 2 * less.seconds[-1] <= 1.2 * last and least.sizes.items == plan.LEVELS[-1].items


@pytest.mark.long
def test_a_search_that_is_late_ends_with_a_short_last_rung(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = planned(1e-4, 10.0)
    monkeypatch.setattr(type(fit.clock), "spent", 400.0)
    monkeypatch.setattr(type(fit.clock), "left", 1.0)
    list(fit.rows())
    assert fit.best is not None and fit.best.rung == 2
    assert (fit.rungs[-1].prefix, fit.rungs[-1].scored) == (plan.LEVELS[-1].prefix, plan.LEVELS[-1].scored)
    assert fit.best.prompt == plan.LEVELS[-1].prefix and fit.exam.count() == plan.LEVELS[-1].items


def test_a_pace_is_that_of_a_short_run(model: Model) -> None:
    engine = Engine(model, threads=1, prefix_tree=False)
    found = pace.measure(engine, 2e-9)
    engine.close()
    assert found.prompt == PROMPT and found.prefill > 0 and found.step > 0 and found.weight == 2e-9
    assert SearchPace.from_dict(found.as_dict()) == found


def test_longer_runs_take_longer_by_the_roofline(model: Model) -> None:
    forecast = Forecast(SearchPace(192, 0.5, 0.01, 1e-8), sizes.of_model(model), MACHINE)
    assert forecast.prefill(192) == pytest.approx(0.5)
    assert forecast.prefill(1920) > 10 * 0.5, "attention grows faster than the prompt"
    assert forecast.step(0) == 0.01 < forecast.step(10**6)
    assert forecast.run(1024, 33, 32) > forecast.run(1024, 17, 16) > forecast.run(512, 17, 16)
    faster = dataclasses.replace(forecast, pace=SearchPace(192, 0.05, 0.001, 1e-8))
    assert faster.run(1024, 33, 0) == pytest.approx(forecast.run(1024, 33, 0) / 10)
    assert forecast.weights(10**8) == pytest.approx(1.0)


def test_rounding_is_timed_on_what_a_technique_rounds(model: Model) -> None:
    from thrifty.weights.techniques.rtn import RoundToNearest

    assert pace.rounding_seconds(model, ()) == 0.0
    assert 0 < pace.rounding_seconds(model, (RoundToNearest(bits=4),)) < 1e-3
