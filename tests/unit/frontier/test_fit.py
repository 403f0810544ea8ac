"""`Fit` from end to end on a tiny random model, in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.tiny import tiny_model

from thrifty.engine.api import Thrifty
from thrifty.errors import BudgetError, PromptError
from thrifty.frontier.candidates import Candidate, Grid
from thrifty.frontier.fit import Fit
from thrifty.frontier.question import Question
from thrifty.frontier.space import space
from thrifty.models import Model
from thrifty.recipe import Recipe

LOOSE = 10**9
CONTEXT = 2048
KIVI = {"technique": "kivi", "bits": 4}
RTN = {"technique": "rtn", "bits": 4, "group": 128}


def candidates() -> list[Candidate]:
    return [
        Candidate(Recipe(), Grid.SHIPPED),
        Candidate(Recipe(cache=[KIVI]), Grid.SHIPPED),
        Candidate(Recipe(cache=[{"technique": "snapkv", "capacity": 128}, KIVI]), Grid.SHIPPED),
        Candidate(Recipe(weights=[RTN]), Grid.ON),
        Candidate(Recipe(weights=[RTN], cache=[KIVI]), Grid.ON),
        Candidate(Recipe(), Grid.OFF),
        Candidate(Recipe(weights=[RTN]), Grid.OFF),
    ]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(packed=True)


def fitted(model: Model, memory: int, chosen: list[Candidate] | None = None) -> Fit:
    question = Question(model, memory, CONTEXT, prefix=320, scored=24, threads=1, candidates=chosen or candidates())
    return Fit(question)


@pytest.fixture(scope="module")
def loose(model: Model) -> Fit:
    fit = fitted(model, LOOSE)
    list(fit.rows())
    return fit


def test_every_candidate_becomes_a_row_against_the_baseline_of_its_grid(loose: Fit) -> None:
    assert [row.candidate for row in loose.measured] == candidates()
    for row in loose.measured:
        assert (row.quality is None) == row.candidate.uncompressed
        assert row.prefill_rate > 0 and row.decode_rate > 0
        assert row.process_peak > row.ledger_peak > row.ledger_steady > 0
        assert row.fits


def test_bytes_measured_stay_within_bytes_promised(loose: Fit, model: Model) -> None:
    baseline, kivi, both = loose.measured[:3]
    assert baseline.need.steady > kivi.need.steady > both.need.steady
    assert baseline.ledger_steady > kivi.ledger_steady > both.ledger_steady
    for row in loose.measured:
        assert row.need.weights + row.need.workspace <= row.ledger_peak < row.need.peak
        assert row.need.steady <= row.need.peak
    assert baseline.need.weights == model.nbytes


def test_with_room_for_everything_the_uncompressed_model_wins(loose: Fit) -> None:
    assert loose.best is loose.measured[0]


def test_a_budget_excludes_what_exceeds_it_and_the_best_of_the_rest_wins(model: Model, loose: Fit) -> None:
    budget = loose.measured[0].need.peak - 1
    fit = fitted(model, budget)
    list(fit.rows())
    assert not fit.measured[0].fits
    assert fit.best is not None and fit.best.fits and fit.best.need.peak <= budget
    rivals = [row for row in fit.measured if row.fits and row.candidate.servable]
    assert fit.best.kl <= min(row.kl for row in rivals) + 1e-4


def test_the_winner_is_a_recipe_that_loads_and_answers_within_the_budget(
    model: Model, loose: Fit, tmp_path: Path
) -> None:
    row = loose.measured[2]
    path = tmp_path / "recipe.toml"
    row.candidate.recipe.save(path)
    with Thrifty(model, recipe=path, memory=row.need.peak, context=CONTEXT, threads=1) as thrifty:
        result = thrifty.generate(list(range(32, 120)) * 20, max_tokens=16, ignore_eos=True)
        assert len(result.token_ids) == 16
        assert thrifty.engine.memory.ledger.peak <= row.need.peak


def test_stopping_early_keeps_the_best_so_far(model: Model) -> None:
    fit = fitted(model, LOOSE)
    rows = fit.rows()
    assert next(rows) is fit.best
    rows.close()
    assert len(fit.measured) == 1


def test_where_nothing_fits_nothing_is_measured(model: Model, loose: Fit) -> None:
    smallest = min(row.need.peak for row in loose.measured if row.candidate.servable)
    fit = fitted(model, smallest - 10_000)
    with pytest.raises(
        BudgetError, match=r"nothing fits .* at context 2048: the smallest recipe, .* with --context \d+\."
    ) as e:
        list(fit.rows())
    assert not fit.measured
    promised = int(str(e.value).rpartition("--context ")[2].rstrip("."))
    assert CONTEXT - 256 < promised < CONTEXT
    list(fitted(model, -(-smallest // 10**6) * 10**6).rows())  # the budget that the message names


def test_a_budget_below_the_weights_holds_no_context(model: Model) -> None:
    with pytest.raises(BudgetError, match="no context is short enough"):
        list(fitted(model, 50_000).rows())


@pytest.mark.parametrize("context", [0, 1, -5, 4097])
def test_an_impossible_context_is_refused_with_the_range(model: Model, context: int) -> None:
    with pytest.raises(PromptError, match=f"context {context} is out of range: this model takes 2 to 4096 tokens"):
        Question(model, LOOSE, context)


@pytest.mark.parametrize("memory", [0, -1])
def test_an_empty_budget_is_refused(model: Model, memory: int) -> None:
    with pytest.raises(BudgetError, match="holds nothing"):
        Question(model, memory, CONTEXT)


def test_all_day_one_candidates_run_on_the_tiny_model(model: Model) -> None:
    fit = Fit(Question(model, LOOSE, CONTEXT, prefix=1024, scored=16, threads=1))
    assert len(list(fit.rows())) == len(space(1024)) >= 60


def test_the_prefix_fills_the_context_within_bounds(model: Model) -> None:
    def prefix(context: int, scored: int = 256) -> int:
        return Fit(Question(model, LOOSE, context, scored=scored, candidates=candidates())).prefix

    assert prefix(4096) == 4096 - 258
    assert prefix(2048) == 2048 - 258
    assert prefix(64) == 1024


def test_a_candidate_that_compresses_nothing_is_left_out_with_the_reason(model: Model) -> None:
    idle = Candidate(Recipe(cache=[{"technique": "snapkv", "capacity": 2000}]), Grid.SHIPPED)
    fit = fitted(model, LOOSE, [candidates()[0], idle, candidates()[1]])
    assert [row.candidate.label for row in fit.rows()] == ["as shipped", "kivi(bits=4)"]
    ((skipped, reason),) = fit.skipped
    assert skipped is idle and "read no compressed segment" in reason
