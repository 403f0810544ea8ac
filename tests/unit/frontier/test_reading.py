"""What techniques need before and while a prompt is read: predicted in bytes and in time, told, and done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.quiet import make_quiet
from tests.searches import KIVI, LOOSE, MACHINE, fitted
from tests.tiny import tiny_model

from thrifty.engine.engine import Engine
from thrifty.evaluation.forcing import MeasurementError
from thrifty.evaluation.roofline import sizes
from thrifty.frontier.candidates import BASE, Candidate, Grid
from thrifty.frontier.explain import why
from thrifty.frontier.fit import Fit
from thrifty.frontier.needless import CACHE, WEIGHTS, needless
from thrifty.frontier.pace import Forecast, SearchPace
from thrifty.frontier.reading import needed
from thrifty.models import Model
from thrifty.models.head_scores import HeadScores, checkpoint_version, find, save
from thrifty.recipe import Recipe

HEADKV = {"technique": "headkv", "capacity": 128}
KVZIP = {"technique": "kvzip", "keep": 0.5}
FASTGEN = {"technique": "fastgen", "recovery": 0.95}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of heads are not there before; the machine is not measured, and does nothing else."""
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("thrifty.frontier.workshop.this_machine", lambda threads, sparing: MACHINE)
    make_quiet(monkeypatch)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(packed=True)


def of(*cache: dict[str, Any]) -> Candidate:
    return Candidate(Recipe(cache=list(cache)), Grid.SHIPPED)


def predicted(model: Model, *candidates: Candidate, **changes: Any) -> Fit:
    fit = fitted(model, LOOSE, [BASE, *candidates], **changes)
    fit.predict()
    return fit


def scored(model: Model, kind: str) -> HeadScores:
    """Scores as a probe makes them: the first layer's heads matter."""
    values = np.ones((3, 4)) * np.array([[2.0], [1.0], [1.0]])
    return HeadScores(
        kind=kind,
        version=checkpoint_version(model),
        layers=(0, 1, 2),
        scores=tuple(tuple(row) for row in values.tolist()),
        asked=16,
        used=16,
        settings={},
        date="2026-01-01",
    )


def test_a_rehearsal_is_predicted_in_bytes_and_in_prefills(model: Model) -> None:
    kvzip, snapkv = of(KVZIP), of({"technique": "snapkv", "capacity": 128})
    fit = predicted(model, kvzip, snapkv)
    base, whole, half = (fit.predictions[one.key] for one in (BASE, kvzip, snapkv))
    assert whole.need.peak > base.need.peak > half.need.peak, "it holds the full cache and what it repeats"
    assert whole.need.steady < base.need.steady and whole.seconds < base.seconds
    assert base.prefills == half.prefills == 1 < whole.prefills
    assert whole.prefill == pytest.approx(whole.prefills * base.prefill) and base.prefill > 0


def test_bytes_of_a_rehearsal_hold_while_it_runs(model: Model) -> None:
    fit = predicted(model, of(KVZIP), tasks=())
    rows = {row.candidate.label: row for row in fit.rows()}
    row = rows["kvzip(keep=0.5)"]
    assert row.ledger_peak <= row.need.peak and row.quality is not None


def test_several_sequences_make_room_for_what_one_alone_does_not() -> None:
    """Of a batch one prompt at a time is held in full."""
    kvzip, model = of(KVZIP), tiny_model(packed=True, layers=12)
    alone, together = predicted(model, kvzip), predicted(model, kvzip, batch=6)
    assert alone.predictions[kvzip.key].need.peak > alone.predictions[BASE.key].need.peak
    assert together.predictions[kvzip.key].need.peak < together.predictions[BASE.key].need.peak


def test_column_sums_and_many_queries_take_longer_to_read(model: Model) -> None:
    h2o, fastgen = of({"technique": "h2o", "capacity": 896}), of(FASTGEN)
    fit = predicted(model, h2o, fastgen)
    assert 1 < fit.predictions[h2o.key].prefills < fit.predictions[fastgen.key].prefills


def test_what_reads_a_prompt_more_often_is_planned_for(model: Model) -> None:
    kvzip = of(KVZIP)
    plain = Forecast(SearchPace(192, 0.5, 0.01, 1e-8), sizes.of_model(model), MACHINE)
    told = Forecast(plain.pace, plain.sizes, MACHINE, {kvzip.key: 2.7})
    assert plain.again(1024, plain.reads_of([kvzip, BASE])) == 0.0
    assert told.again(1024, told.reads_of([kvzip, BASE])) == pytest.approx(1.7 * 1.25 * told.prefill(1024))
    fit = fitted(model, LOOSE, [BASE, kvzip], minutes=10.0)
    fit.begin()
    assert fit.workshop.forecast([BASE, kvzip]).reads[kvzip.key] == fit.predictions[kvzip.key].prefills


def test_a_group_that_reads_more_often_gets_more_of_a_rungs_time(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(Fit, "_deadline", lambda self, rung, part: asked.append(part) or float("inf"))
    rounded = Candidate(Recipe(weights=[{"technique": "rtn", "bits": 4, "group": 128}]), Grid.ON)
    fit = fitted(model, LOOSE, [BASE, of(KVZIP), rounded])
    next(iter(fit.rows()))
    reads = fit.predictions[of(KVZIP).key].prefills
    assert asked == [pytest.approx((1 + reads) / (2 + reads))]


def test_scores_of_heads_are_measured_once_and_told_before(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    probed: list[str] = []

    def probe(engine: Engine, kind: str, step: Any) -> HeadScores:
        probed.append(kind)
        step()
        return scored(model, kind)

    monkeypatch.setattr("thrifty.frontier.heads.probe", probe)
    fit = fitted(model, LOOSE, [BASE, of(HEADKV), of(HEADKV, KIVI)], minutes=10.0)
    made = fit.begin()
    assert made.probe > 0 and made.total == pytest.approx(made.probe + sum(made.seconds)) and not probed
    rows = {row.candidate.label for row in fit.rows()}
    assert probed == ["r"] and find(model, "r") is not None and not fit.skipped
    assert "headkv(capacity=128)" in rows
    again = fitted(model, LOOSE, [BASE, of(HEADKV)], minutes=10.0)
    assert again.begin().probe == 0.0
    list(again.rows())
    assert probed == ["r"]


def test_a_model_whose_heads_cannot_be_scored_is_asked_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def probe(engine: Engine, kind: str, step: Any) -> HeadScores:
        asked.append(kind)
        raise MeasurementError("it answers nothing")

    monkeypatch.setattr("thrifty.frontier.heads.probe", probe)
    fit = fitted(model, LOOSE, [BASE, of(HEADKV), of(KIVI)], minutes=10.0)
    assert {row.candidate.key for row in fit.rows()} == {BASE.key, of(KIVI).key}
    assert [reason for _, reason in fit.skipped] == ["it answers nothing"]
    more = fitted(model, LOOSE, [BASE, of(HEADKV), of(KIVI)], state=fit.state, minutes=10.0)
    list(more.rows())
    assert asked == ["r"] and [reason for _, reason in more.skipped] == ["it answers nothing"]
    save(model, scored(model, "r"))
    assert fitted(model, LOOSE, [BASE, of(HEADKV)], state=fit.state).workshop.score_heads(["r"]) == {}


def test_needed_names_each_kind_once() -> None:
    assert needed([of(HEADKV), of(HEADKV, KIVI), BASE]) == ["r"]


def test_a_cache_that_may_keep_everything_is_needless(model: Model) -> None:
    fastgen, kivi = of(FASTGEN), of(KIVI)
    rounded = Candidate(Recipe(weights=[{"technique": "rtn", "bits": 8}]), Grid.ON)
    fit = predicted(model, fastgen, kivi, of(KVZIP), rounded)
    reasons = {key: needless(one, fit.predictions) for key, one in fit.predictions.items()}
    assert reasons[fastgen.key] == CACHE and reasons[rounded.key] == WEIGHTS
    assert reasons[BASE.key] is reasons[kivi.key] is None
    assert reasons[of(KVZIP).key] is None, "its steps read less"
    alone = {fastgen.key: fit.predictions[fastgen.key]}
    assert needless(fit.predictions[fastgen.key], alone) is None, "there is no full cache to compare it with"
    assert fit.pointless(fit.predictions[fastgen.key]) is None, "what was asked for is measured"


def test_a_winner_that_reads_a_prompt_again_says_so(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thrifty.frontier.measurement.expected_step", lambda predicted, *_: predicted.seconds)
    known = predicted(model, of(KVZIP)).predictions
    between = (known[BASE.key].seconds + known[of(KVZIP).key].seconds) / 2
    fit = fitted(model, LOOSE, [BASE, of(KVZIP)], latency=between)
    list(fit.rows())
    assert fit.best is not None and fit.best.candidate.key == of(KVZIP).key
    assert f"It reads a prompt in about {known[of(KVZIP).key].prefills:.1f} times" in " ".join(why(fit))
