"""`Fit` from end to end on a tiny random model, in seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.quiet import make_quiet
from tests.searches import CONTEXT, LOOSE, MACHINE, candidates, fitted
from tests.tiny import text_tokens, tiny_model

from thrifty.api import Thrifty
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.errors import BudgetError, PromptError, ThriftyError
from thrifty.evaluation.recovery import Interval
from thrifty.frontier.candidates import BASE, Candidate
from thrifty.frontier.exam import Exam
from thrifty.frontier.explain import next_step, why, why_nothing
from thrifty.frontier.fit import Fit
from thrifty.frontier.measurement import TASKS, Scored
from thrifty.frontier.question import Question
from thrifty.frontier.space import space
from thrifty.frontier.state import SearchState
from thrifty.frontier.workshop import Workshop
from thrifty.models import Model


@pytest.fixture(scope="module", autouse=True)
def known_machine() -> Iterator[None]:
    """The machine is not measured anew for every search, and does nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("thrifty.frontier.workshop.this_machine", lambda threads, sparing: MACHINE)
        make_quiet(patch)
        yield


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(packed=True)


@pytest.fixture(scope="module")
def loose(model: Model) -> Fit:
    fit = fitted(model, LOOSE)
    list(fit.rows())
    return fit


@pytest.fixture(scope="module")
def tight(model: Model, loose: Fit) -> Fit:
    """With a byte too little for the uncompressed model."""
    fit = fitted(model, loose.predictions[BASE.key].need.peak - 1)
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
    assert loose.best == loose.measured[0] and loose.best.candidate.uncompressed


def test_a_budget_excludes_what_exceeds_it_and_the_best_of_the_rest_wins(loose: Fit, tight: Fit) -> None:
    fit, budget = tight, loose.measured[0].need.peak - 1
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
    first = next(rows)
    assert fit.best == first
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


@pytest.mark.long
def test_the_whole_space_runs_on_the_tiny_model(model: Model) -> None:
    fit = Fit(Question(model, LOOSE, CONTEXT, prefix=1024, scored=8, threads=1, items=1))
    list(fit.rows())
    pointless = {key: reason for key, one in fit.predictions.items() if (reason := fit.pointless(one))}
    skipped = {one.key: reason for one, reason in fit.skipped}
    assert {row.candidate.key for row in fit.measured} == {one.key for one in space(1024)} - set(pointless) - set(
        skipped
    )
    reasons = Counter(pointless.values())
    assert fit.dropped() == {"memory": 0, "latency": 0, **reasons, "slow": 0, "gentler": 0}
    assert reasons["weights"] >= 6 and reasons["cache"] >= 1
    for key, reason in pointless.items():
        found = fit.predictions[key]
        if reason == "weights":
            assert found.candidate.recipe.weights and found.need.weights >= model.nbytes
        else:
            assert found.candidate.recipe.cache[0]["technique"] == "fastgen"
    for one, reason in fit.skipped:
        name = one.recipe.cache[0]["technique"]
        assert {"headkv": "head probe", "kvmerger": "cannot be met"}[name] in reason, "a tiny model of three layers"


def test_the_prefix_fills_the_context_within_bounds(model: Model) -> None:
    def prefix(context: int, scored: int = 256) -> int:
        return Fit(Question(model, LOOSE, context, scored=scored, candidates=candidates())).prefix

    assert prefix(4096) == 4096 - 64 - 258
    assert prefix(2048) == 2048 - 64 - 258
    assert prefix(64) == 1024


def test_rungs_halve_and_the_later_ones_run_tasks(loose: Fit) -> None:
    asked = [row for row in loose.measured if row.stage == TASKS]
    whole = [row for row in asked if row.rung == 2]
    assert BASE.key in {row.candidate.key for row in whole} and len(whole) < len(asked) < len(loose.measured)
    for row in asked:
        assert list(row.tasks) == ["recall"] and row.tasks["recall"].items == 2
        assert row.rung in (1, 2) and loose.row(row.candidate, 0) is not None
    for row in loose.measured:
        assert row.predicted is not None and row.step is not None and row.step > 0


def test_what_cannot_fit_never_runs_in_the_search(model: Model, loose: Fit) -> None:
    needs = sorted(one.need.peak for one in loose.predictions.values() if one.candidate.servable)
    fit = fitted(model, needs[1])
    ran = {row.candidate.key for row in fit.rows()}
    inside = {key for key, one in fit.predictions.items() if one.candidate.servable and fit.fits(one)}
    assert fit.dropped() == {
        "memory": len(needs) - len(inside),
        "latency": 0,
        "weights": 0,
        "cache": 0,
        "slow": 0,
        "gentler": 0,
    }
    beyond = {row.candidate.key for row in fit.measured if row.candidate.servable and not row.fits} - {BASE.key}
    assert inside <= ran
    assert all(fit.row(row.candidate, 2) is None for row in fit.measured if row.candidate.key in beyond)


def test_several_sequences_need_more_and_really_fit_together(model: Model) -> None:
    one, three = fitted(model, LOOSE), fitted(model, LOOSE, batch=3)
    one.predict()
    three.predict()
    for key, alone in one.predictions.items():
        together = three.predictions[key]
        assert together.need.cache_peak > 2 * alone.need.cache_steady
        assert together.seconds > alone.seconds
    for candidate in candidates()[:3]:
        need = three.predictions[candidate.key].need
        engine = Engine(model, memory=need.peak, threads=1, prefix_tree=False)
        prompts = [tuple(text_tokens(CONTEXT - 256, seed)) for seed in range(3)]
        handles = [
            engine.submit(Request(prompt=one, forced=(65,) * 200, cache=candidate.recipe.cache)) for one in prompts
        ]
        together = 0
        while engine.busy:
            engine.step()
            together = max(together, engine.describe()["queues"]["active"])
        assert together == 3 and engine.memory.ledger.peak <= need.peak
        assert [handle.usage.preemptions for handle in handles] == [0, 0, 0]
        engine.close()


def test_a_latency_that_no_roofline_allows_is_refused(model: Model) -> None:
    fit = fitted(model, LOOSE, latency=1e-9)
    with pytest.raises(BudgetError, match=r"nothing decodes within .* at context 2048: of 5 recipes"):
        list(fit.rows())
    assert not fit.measured


def test_a_latency_that_no_run_reaches_is_explained(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thrifty.frontier.measurement.expected_step", lambda *_: 0.5)
    fit = fitted(model, LOOSE, latency=0.4)
    list(fit.rows())
    assert fit.measured and fit.best is None
    assert why_nothing(fit).startswith("no recipe that fits 1 GB decodes within 400ms: the fastest, ")
    assert why_nothing(fit).endswith("took 500ms, 100ms more. It would do with --latency 510ms")


@pytest.mark.long
def test_a_recovery_that_nothing_reaches_is_explained(
    model: Model, loose: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = loose.predictions[BASE.key].need.peak - 1
    fit = fitted(model, budget, min_recovery=0.95)
    list(fit.rows())
    assert fit.best is None
    assert "recovery is undefined, so nothing is known to reach 0.95" in why_nothing(fit)
    scored = {"recall": Scored(0.45, Interval(0.9, 0.8, 1.0), 2)}
    monkeypatch.setattr(Exam, "scores", lambda *_: scored)
    fit = fitted(model, budget, min_recovery=0.95)
    list(fit.rows())
    assert fit.best is None
    assert "reaches 0.900 (95% 0.800 to 1.000), 0.050 less" in why_nothing(fit)
    assert "It would do with --min-recovery 0.9;" in why_nothing(fit)
    less = fitted(model, budget, min_recovery=0.9)
    list(less.rows())
    assert less.best is not None


def test_a_task_that_the_uncompressed_model_cannot_do_is_undefined_and_said_so(loose: Fit) -> None:
    assert loose.exam.undefined(BASE) == ["recall"], "a random model recalls nothing"
    row = next(row for row in loose.measured if row.stage == TASKS and row.quality is not None)
    assert row.tasks["recall"].recovery is None
    assert any("recovery is undefined there" in sentence for sentence in why(loose))


def test_the_winner_is_explained_and_the_next_step_up_is_priced(loose: Fit, tight: Fit) -> None:
    fit, budget = tight, loose.predictions[BASE.key].need.peak - 1
    step = next_step(fit)
    assert fit.best is not None and step is not None
    assert step.need_peak > budget and step.more_bytes == step.need_peak - fit.best.need.peak
    assert step.kl < step.winner_kl
    assert any(f"The next step up is {step.recipe}" in sentence for sentence in why(fit))
    assert next_step(loose) is None


@pytest.mark.long
def test_a_search_goes_on_from_its_state_without_measuring_again(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.jsonl"
    with SearchState(path, {}) as state:
        rows = fitted(model, LOOSE, state=state).rows()
        for _ in range(4):
            next(rows)
        rows.close()
    runs: list[str] = []
    measured = Workshop._measured

    def counting(self: Workshop, engine: Any, candidate: Candidate, rung: Any) -> Any:
        runs.append(candidate.key)
        return measured(self, engine, candidate, rung)

    monkeypatch.setattr(Workshop, "_measured", counting)
    with SearchState(path, {}) as state:
        second = fitted(model, LOOSE, state=state)
        whole = list(second.rows())
    count, runs[:] = len(runs), []
    with SearchState(path, {}) as state:
        third = fitted(model, LOOSE, state=state)
        assert list(third.rows()) == whole
    assert count > 0 and not runs, "the third search measured nothing"
    assert third.best == second.best and third.workshop.spent == pytest.approx(second.workshop.spent)


def test_a_seed_means_the_same_search(model: Model, loose: Fit) -> None:
    again = fitted(model, LOOSE)
    list(again.rows())
    assert [row.candidate for row in again.measured] == [row.candidate for row in loose.measured]
    assert [(row.kl, row.rung) for row in again.measured] == [(row.kl, row.rung) for row in loose.measured]


def test_weights_with_more_candidates_get_more_of_a_rungs_time(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, float]] = []
    monkeypatch.setattr(Fit, "_deadline", lambda self, rung, part: asked.append((rung.index, part)) or float("inf"))
    fit = fitted(model, LOOSE, candidates()[:5])
    next(iter(fit.rows()))
    assert asked == [(fit.rungs[0].index, 3 / 5)], "three share the weights as shipped, two are rounded"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch": 0}, "a batch of 0"),
        ({"latency": 0.0}, "a latency of 0.0 s"),
        ({"min_recovery": 1.5}, "more than 0 and at most 1"),
        ({"minutes": 0}, "no time to search"),
        ({"items": 0}, "0 items"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(model: Model, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        Question(model, LOOSE, CONTEXT, **wrong)


def test_an_unknown_task_gets_the_nearest(model: Model) -> None:
    with pytest.raises(ThriftyError, match="Did you mean 'recall'"):
        fitted(model, LOOSE, tasks=("recal",))
