"""Runs of several claims: bounded, interrupted, failing; and the real claims on a tiny model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.tiny import tiny_model

from thrifty import claims
from thrifty.claims.harness import records, running
from thrifty.claims.harness.claim import Claim, Figures, Verdict
from thrifty.claims.harness.context import Context, recovery_of
from thrifty.claims.harness.needles import needles, recalled
from thrifty.claims.harness.running import Reproduction
from thrifty.engine.engine import Engine
from thrifty.errors import PromptError
from thrifty.evaluation import quality
from thrifty.evaluation.forcing import MeasurementError
from thrifty.evaluation.heads import probe as head_probe
from thrifty.evaluation.recovery import Interval
from thrifty.evaluation.tasks._answering import Answering
from thrifty.models.head_scores import HeadScores

NAMES = ["ada-kv", "h2o", "kivi"]


class Fake(Claim):
    paper, source, rule, minutes = "1 ×", "arXiv:1", "always", 1.0

    def __init__(self, action: Callable[[], None] = lambda: None) -> None:
        self.action = action

    def measure(self, context: Context) -> Figures:
        self.action()
        return {"x": 2.0}

    def judge(self, figures: Figures) -> Verdict:
        return Verdict.HOLDS if figures["x"] == 2.0 else Verdict.FAILS

    def tell(self, figures: Figures) -> str:
        return f"{figures['x']:.0f} ×"

    def setting(self, figures: Figures) -> str:
        return "nothing was run"


@pytest.fixture(scope="module")
def context() -> Iterator[Context]:
    with Context(tiny_model(packed=True), "tiny", threads=1) as made:
        yield made


def fakes(monkeypatch: pytest.MonkeyPatch, **actions: Callable[[], None]) -> None:
    monkeypatch.setattr(claims, "load", lambda name: Fake(actions.get(name.replace("-", "_"), lambda: None)))


def test_every_row_is_on_disk_when_it_is_given(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes(monkeypatch)
    page = tmp_path / "claims.md"
    for count, row in enumerate(Reproduction(lambda name: context, NAMES, page).rows(), start=1):
        held = records.read(records.record_of(page))
        assert len(held) == count and held[row.technique] == row
        assert page.read_text().count("**holds**") == count
    assert row.setting == "tiny: nothing was run" and row.measured == "2 ×"


def test_an_interrupted_run_keeps_what_was_finished(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    fakes(monkeypatch, h2o=interrupted)
    page = tmp_path / "claims.md"
    with pytest.raises(KeyboardInterrupt):
        list(Reproduction(lambda name: context, NAMES, page).rows())
    assert set(records.read(records.record_of(page))) == {"ada-kv"}
    fakes(monkeypatch)
    list(Reproduction(lambda name: context, ["kivi"], page).rows())
    assert set(records.read(records.record_of(page))) == {"ada-kv", "kivi"}


def test_rows_that_another_run_adds_meanwhile_stay(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "claims.md"

    def another_run() -> None:
        fakes(monkeypatch)
        list(Reproduction(lambda name: context, ["kivi"], page).rows())

    fakes(monkeypatch, h2o=another_run)
    list(Reproduction(lambda name: context, ["h2o"], page).rows())
    assert set(records.read(records.record_of(page))) == {"h2o", "kivi"}


def test_a_claim_that_cannot_be_measured_does_not_stop_the_others(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise PromptError("this context holds 4096")

    fakes(monkeypatch, ada_kv=refuse)
    run = Reproduction(lambda name: context, NAMES, tmp_path / "claims.md")
    assert [row.technique for row in run.rows()] == ["h2o", "kivi"]
    assert run.failed == {"ada-kv": "this context holds 4096"}


def test_no_claim_begins_that_would_end_too_late(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes(monkeypatch)
    clock = iter([0.0, 0.0, 0.0, 60.0, 61.0, 61.0, 61.0, 61.0])
    monkeypatch.setattr(running.time, "monotonic", lambda: next(clock))
    run = Reproduction(lambda name: context, NAMES, tmp_path / "claims.md", minutes=2.0)
    assert [row.technique for row in run.rows()] == ["ada-kv"]
    assert run.left_out == ["h2o", "kivi"]


RIVALS = {"rivals.ASKED": 2, "rivals.PREFIX": 320, "rivals.SCORED": 24, "rivals.PARTS": 1}
SMALL = {
    "kivi": {"PREFIX": 320, "SCORED": 24},
    "h2o": {"PREFIX": 320, "SCORED": 24},
    "minikv": {"PREFIX": 320, "SCORED": 24},
    "ada-kv": {"PREFIX": 320, "SCORED": 24, "PARTS": 2},
    "streaming": {"PREFIX": 512, "SCORED": 24, "CACHE": 128},
    "fastgen": {"PREFIX": 320, "SCORED": 24},
    "kvmerger": {"PREFIX": 320, "SCORED": 24, "WHOLE": {"first": 0, "last": 0}},
    "kvzip": {"PREFIX": 320, "SCORED": 24, "QUESTION": 300, "ASKED": 2, "LONG": 384, "ROUNDS": 1},
    "rtn": {"PREFIX": 64, "SCORED": 24},
    "scbench": {"LENGTH": 640, "ITEMS": 2},
    "snapkv": {"LONGEST": 640, "STEPS": 8, "ASKED": 3},
    "knorm": {"QUESTION": 300, "ASKED": 2},
    "pyramidkv": RIVALS,
    "quest": {"PREFIX": 384, "SCORED": 24, "BUDGETS": {"16": 192, "6": 256}, "STEPS": 8, "ASKED": 2, "QUESTION": 300},
    "headkv": RIVALS,
    "headkv-r2": {"QUESTION": 300, "ASKED": 2, "SHARE": 0.1},
}


def made_up_scores(engine: Engine, kind: str) -> HeadScores:
    config = engine.model.config
    layers = tuple(range(len(config.layers)))
    scores = tuple(tuple(float(1 + layer * head) for head in range(config.heads)) for layer in layers)
    version = engine.model.version
    return HeadScores(
        kind=kind, version=version, layers=layers, scores=scores, asked=1, used=1, settings={}, date="2026-01-01"
    )


@pytest.mark.parametrize("name", claims.names())
def test_a_claim_measures_and_judges(name: str, context: Context, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    module = f"thrifty.claims.{name.replace('-', '_')}"
    claim = claims.load(name)
    for constant, value in SMALL[name].items():
        monkeypatch.setattr(f"{module}.{constant}", value)
    # Random weights predict nothing right, so that there is nothing to recover, and no head can be scored.
    monkeypatch.setattr(head_probe, "probe", made_up_scores)
    monkeypatch.setattr(quality, "ratio_interval", lambda score, baseline: Interval(0.97, 0.9, 1.0))
    outcome = claim.run(context)
    assert outcome.verdict is claim.judge(dict(outcome.figures))
    assert outcome.setting.startswith("tiny: ") and any(letter.isdigit() for letter in outcome.measured)
    assert all(isinstance(value, int | float) and value == value for value in outcome.figures.values())


def test_timings_that_others_disturbed_are_called_void() -> None:
    claim = claims.load("snapkv")
    figures = {"length": 100.0, "asked": 3.0, "question": 90.0, "others": 0.005}
    assert "VOID" not in claim.setting(figures)
    assert "TIMING VOID: others took 30% of the machine" in claim.setting(figures | {"others": 0.3})


def test_a_model_that_predicts_nothing_right_has_no_recovery(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "ratio_interval", lambda score, baseline: None)
    run = context.quality([{"technique": "kivi"}], 320, 16)
    with pytest.raises(MeasurementError, match="recovery is undefined: the uncompressed model predicts none"):
        recovery_of(run)


def test_memory_of_a_batch_is_that_of_all_its_sequences(context: Context) -> None:
    weights = context.model.nbytes
    one, four = (context.peak([], 512, count) for count in (1, 4))
    cache = context.engine.memory.cache.footprint((), 512, 512).steady_bytes
    assert four - one >= 3 * cache > 0
    assert one > weights + cache
    small = context.peak([{"technique": "kivi", "bits": 2}], 512, 4)
    assert small < four - cache


def test_needles_are_in_the_text_and_asked_for_at_its_end(context: Context) -> None:
    tokenizer = context.model.tokenizer
    made = needles(tokenizer, 600, 4)
    for one in made:
        text = tokenizer.decode(one.prompt)
        (answer,) = one.turns[0].expected
        assert text.count(answer) == 1 and text.endswith("?") and "What is the secret number" in text[-50:]
        assert len(one.prompt) <= 600
    assert len({one.turns[0].expected for one in made}) == 4
    assert made == needles(tokenizer, 600, 4) != needles(tokenizer, 600, 4, seed=1)


def test_a_claim_is_measured_with_its_own_model_unless_another_is_named(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes(monkeypatch)
    asked: list[str] = []

    def contexts(name: str) -> Context:
        asked.append(name)
        return context

    list(Reproduction(contexts, ["kivi"], tmp_path / "claims.md").rows())
    list(Reproduction(contexts, ["kivi"], tmp_path / "claims.md", model="other").rows())
    assert asked == [Claim.model, "other"]


def test_a_needle_is_recalled_where_the_answer_names_it(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    made = needles(context.model.tokenizer, 300, 2)
    assert recalled(context.engine, made, [{"technique": "snapkv", "keep": 0.5}]) == [False, False], "random weights"
    grade = Answering.grade
    right = {one.identity: one.turns[0].expected[0] for one in made}
    monkeypatch.setattr(Answering, "grade", lambda self, item, turn, _: grade(self, item, turn, right[item.identity]))
    assert recalled(context.engine, made, []) == [True, True]
