"""The search against all feasible recipes: what is compared, and a run whose minutes end."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import fit_exhaustive
from tests.quiet import make_quiet
from tests.searches import CONTEXT, MACHINE, candidates
from tests.tiny import tiny_model

from thrifty.frontier.clock import Clock
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


def question(model: Model, memory: int) -> Question:
    return Question(
        model,
        memory,
        CONTEXT,
        prefix=320,
        scored=24,
        threads=1,
        candidates=candidates()[:5],
        items=2,
        tasks=("recall",),
    )


def test_a_search_is_held_against_all_that_fits(model: Model) -> None:
    rows = fit_exhaustive.measured(lambda memory: question(model, memory), SearchState(None, {}), Clock(None))
    assert [row["budget"] for row in rows] == ["tight", "middle", "loose"]
    assert [row["feasible"] for row in rows] == sorted(row["feasible"] for row in rows) and rows[-1]["feasible"] == 5
    for row in rows:
        assert 0 <= row["regret"] <= 1 and row["fitting_seconds"] <= row["exhaustive_seconds"] * 1.001
        assert 1 <= row["second_rung"]["of_them_seen"] <= row["second_rung"]["good"]
        assert row["holds"] == (row["regret"] <= 0.02 and row["time_ratio"] <= 0.1)
    assert rows[-1]["winner"] == rows[-1]["best"] == "as shipped"


def test_minutes_that_are_too_short_leave_a_state_to_go_on_from(model: Model, tmp_path: Path) -> None:
    asked = question(model, 10**9)
    with SearchState(tmp_path / "s.jsonl", {}) as state:
        with pytest.raises(fit_exhaustive.Unfinished) as error:
            fit_exhaustive.exhaust(asked, state, Clock(1e-9))
        held = len(state)
        assert error.value.missing == 4
    with SearchState(tmp_path / "s.jsonl", {}) as state:
        assert len(state) == held > 0
        assert len(fit_exhaustive.exhaust(asked, state, Clock(None)).measured) == 5


def test_caches_alone_are_searched_where_that_is_asked(model: Model) -> None:
    every = fit_exhaustive.shipped(question(model, 10**9))
    assert every.candidates is not None and len(every.candidates) > 25
    assert not any(candidate.recipe.weights for candidate in every.candidates)
