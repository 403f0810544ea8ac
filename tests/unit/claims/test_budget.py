"""How much a run measures, in which order, and what it says before it begins."""

from __future__ import annotations

import pytest

from thrifty import claims
from thrifty.claims.harness import budget, plan
from thrifty.claims.harness.budget import MIDDLE, OVERNIGHT, SHORT
from thrifty.errors import RecipeError


@pytest.mark.parametrize(
    ("text", "like", "minutes"),
    [
        (None, SHORT, None),
        ("20", SHORT, 20.0),
        ("5", SHORT, 5.0),
        ("0", SHORT, 0.0),
        ("119.5", SHORT, 119.5),
        ("120", MIDDLE, 120.0),
        ("500", MIDDLE, 500.0),
        ("720", OVERNIGHT, 720.0),
        ("overnight", OVERNIGHT, 720.0),
    ],
)
def test_minutes_choose_the_largest_counts_that_fit(
    text: str | None, like: budget.Budget, minutes: float | None
) -> None:
    chosen = budget.parse(text)
    assert chosen.minutes == minutes
    assert (chosen.items, chosen.tokens, chosen.models) == (like.items, like.tokens, like.models)


@pytest.mark.parametrize("text", ["overnite", "-1", "nan", "inf", ""])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="--minutes"):
        budget.parse(text)


def test_larger_budgets_measure_more_and_the_middle_one_what_a_verdict_needs() -> None:
    assert MIDDLE.items >= 100 and MIDDLE.tokens >= 10_000
    for smaller, larger in ((SHORT, MIDDLE), (MIDDLE, OVERNIGHT)):
        for name in ("items", "tokens", "answers", "rounds", "models", "factor"):
            assert getattr(smaller, name) < getattr(larger, name)


def test_all_claims_run_on_their_first_model_before_any_runs_on_its_second() -> None:
    names = claims.names()
    steps = plan.plan(names, OVERNIGHT)
    assert [step.technique for step in steps[: len(names)]] == names
    for name in names:
        models = claims.load(name).models[: OVERNIGHT.models]
        assert [step.model for step in steps if step.technique == name] == list(models)
    assert [step.model for step in plan.plan(["kivi"], SHORT, ["a", "b"])] == ["a", "b"]


def test_larger_models_are_planned_with_more_time() -> None:
    small, large = plan.plan(["kivi"], SHORT, ["smollm2-135m", "qwen2.5-coder-1.5b"])
    assert large.minutes == pytest.approx(12 * small.minutes)
    assert plan.plan(["kivi"], MIDDLE, ["smollm2-135m"])[0].minutes > small.minutes


def test_the_plan_is_told_before_it_starts() -> None:
    steps = plan.plan(["kivi", "h2o"], SHORT)
    total = 2 * sum(step.minutes for step in steps)
    text = plan.told(steps, budget.parse("20"), 2)
    assert f"about {total:.0f} minutes" in text and "of 20 there are" in text and "2 claims" in text
    assert "there are" not in plan.told(steps, budget.parse(None), 1)


def test_a_measured_pace_corrects_the_plan() -> None:
    pace = plan.Pace()
    assert pace.expected(2.0) == 2.0
    pace.add(1.0, 3.0)
    assert pace.expected(2.0) == pytest.approx(6.0)
    pace.add(1.0, 1000.0)
    assert pace.expected(1.0) == plan.MOST
