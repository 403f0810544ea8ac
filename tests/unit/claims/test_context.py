"""What claims measure with: the same scores whatever is shared, kept and gone on with, and the bytes of caches."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import tiny_model

from thrifty.claims.harness import context as contexts
from thrifty.claims.harness import state as states
from thrifty.claims.harness.budget import SHORT, Budget
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.controls import controlled
from thrifty.claims.harness.parts import Verdict
from thrifty.claims.harness.scores import timing
from thrifty.claims.harness.scores.keys import keyed
from thrifty.claims.harness.scores.passages import SCORED, cuts
from thrifty.claims.harness.state import State
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.errors import PromptError, StorageError
from thrifty.evaluation import tasks
from thrifty.evaluation.forcing import MeasurementError
from thrifty.evaluation.measuring.noise import Noise
from thrifty.evaluation.text import prose
from thrifty.models.head_scores import HeadScores, save

SMALL = Budget("tiny", None, items=4, tokens=2 * SCORED, answers=2, rounds=2, models=1, factor=1.0)
SNAPKV: dict[str, Any] = {"technique": "snapkv", "keep": 0.5, "window": 16}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(packed=True)


@pytest.fixture(scope="module")
def context(model: Any) -> Iterator[Context]:
    with Context(model, "tiny", threads=1, budget=SMALL) as made:
        yield made


def test_scores_are_the_same_as_of_prompts_that_are_computed_alone(context: Context, model: Any) -> None:
    task = tasks.load("multi-request", length=400, requests=2)
    items = task.items(model.require_tokenizer(), 2, 0)
    for cache in ([], [SNAPKV], [{"technique": "h2o", "keep": 0.5}], [{"technique": "kivi", "bits": 2}]):
        shared = context.recall(cache, length=400, mode="agnostic")
        engine = context.fresh(model)
        try:
            alone = [turn for item in items for turn in task.run(engine, item, cache).details["turns"]]
        finally:
            engine.close()
        assert list(shared.values) == alone and shared.contexts == 2
    losses = context.losses([SNAPKV], prefix=400)
    with Context(model, "tiny", threads=1, budget=SMALL) as other:
        other.__dict__["engine"] = other.fresh(model)
        assert other.losses([SNAPKV], prefix=400) == losses


def test_a_context_is_prefilled_once_for_many_policies(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    handles: list[Any] = []
    submit = Engine.submit

    def watched(self: Engine, request: Request, *rest: Any) -> Any:
        handles.append(submit(self, request, *rest))
        return handles[-1]

    with Context(model, "tiny", threads=1, budget=dataclasses.replace(SMALL, items=1)) as own:
        engine = own.engine
        monkeypatch.setattr(Engine, "submit", watched)
        for keep in (0.5, 0.25):
            own.recall([SNAPKV | {"keep": keep}], length=500)
        assert engine is own.engine
    first, second = [handle.usage.cached_tokens for handle in handles]
    assert first == 0 and second >= 256, "whole pages of the prompt are there already"


def test_full_caches_share_nothing_so_that_memory_does_not_grow(context: Context) -> None:
    before = context.engine.usage().steady
    for _ in range(2):
        context.task("recall", [], items=2, length=300 + 64)
    assert context.engine.usage().steady == before


def test_a_result_is_measured_once_and_a_stopped_run_goes_on(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "state.jsonl"
    seen: list[str] = []
    budget = dataclasses.replace(SMALL, items=3)
    recall = partial(Context.recall, cache=[SNAPKV], length=300)

    class Stopping(State):
        def once(self, key: Any, measure: Any) -> Any:
            if len(self) == 2:
                raise KeyboardInterrupt
            return super().once(key, measure)

    class Watching(State):
        def once(self, key: Any, measure: Any) -> Any:
            if not self.has(key):
                seen.append(key[3])
            return super().once(key, measure)

    with (
        Stopping(path, {"a": 1}) as kept,
        Context(model, "t", threads=1, budget=budget, state=kept) as own,
        pytest.raises(KeyboardInterrupt),
    ):
        recall(own)
    with Watching(path, {"a": 1}) as kept, Context(model, "t", threads=1, budget=budget, state=kept) as own:
        continued = recall(own)
    assert len(seen) == 1, "two items of three were there"
    with Context(model, "t", threads=1, budget=budget) as own:
        assert recall(own) == continued


def test_results_of_other_code_or_weights_are_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "cache_directory", lambda: tmp_path)
    with states.state_of("source", "weights") as kept:
        kept.once(["a"], lambda: 1)
    with states.state_of("source", "weights") as kept:
        assert kept.once(["a"], lambda: 2) == 1
    for source, weights in (("other", "weights"), ("source", "others"), ("source", "")):
        with states.state_of(source, weights) as kept:
            assert len(kept) == 0
    with states.state_of("source", "weights"), pytest.raises(StorageError, match="another run is using the results"):
        states.state_of("source", "weights")


def test_results_of_another_setting_of_the_engine_are_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "cache_directory", lambda: tmp_path)
    with states.state_of("source", "weights", {"threads": 2, "native": None}) as kept:
        kept.once(["a"], lambda: 1)
    for engine in ({"threads": 1, "native": None}, {"threads": 2, "native": False}):
        with states.state_of("source", "weights", engine) as kept:
            assert len(kept) == 0
    with states.state_of("source", "weights", {"threads": 2, "native": None}) as kept:
        assert len(kept) == 1


def test_results_of_heads_that_were_probed_otherwise_are_not_gone_on_with(model: Any, cache: Path) -> None:
    tables = [{"technique": "headkv", "capacity": 64}], [{"technique": "snapkv", "keep": 0.5}]
    without = [keyed(table, model) for table in tables]
    assert without == list(tables), "no scores, no digest"
    layers = tuple(range(len(model.config.layers)))
    keys = []
    for used in (3, 4):
        rows = tuple(tuple(float(used + head) for head in range(model.config.heads)) for _ in layers)
        common: dict[str, Any] = {"kind": "r", "version": model.version, "layers": layers, "date": "2026"}
        save(model, HeadScores(scores=rows, asked=4, used=used, settings={"seed": 0}, **common))
        keys.append([keyed(table, model) for table in tables])
    assert keys[0][0] != keys[1][0] != without[0]
    assert keys[0][1] == keys[1][1] == without[1]
    with Context(model, "tiny", threads=1, budget=SMALL) as own:
        own.heads("r")
        assert own.probed == {"r": "r: 4 of 4, 2026, seed 0"}


def test_results_that_lay_untouched_for_a_month_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "cache_directory", lambda: tmp_path)
    for name in ("old", "new"):
        with states.state_of(name, "weights") as kept:
            kept.once(["a"], lambda: 1)
    old = next((tmp_path / states.FOLDER).glob("old-*"))
    os.utime(old, (0, 0))
    states.state_of("other", "weights").close()
    names = sorted(path.name for path in (tmp_path / states.FOLDER).iterdir())
    assert names == ["new-weights.jsonl", "other-weights.jsonl"]


def test_a_seed_chooses_other_passages_and_all_are_of_the_judged_half(context: Context, model: Any) -> None:
    tokenizer = model.require_tokenizer()
    first, second = (cuts(tokenizer, context.length, 300, 5, seed) for seed in (0, 1))
    assert {cut.name for cut in first} != {cut.name for cut in second}
    assert first == cuts(tokenizer, context.length, 300, 5, 0)
    text = tokenizer.encode(prose("judged"))
    scored: set[int] = set()
    for cut in cuts(tokenizer, context.length, 300, 10**6, 0):
        start = int(cut.name.removeprefix("passage "))
        assert list(cut.passage.answer) == text[start : start + SCORED + 1]
        assert list(cut.passage.prompt)[-50:] == (text * 2)[len(text) + start - 50 : len(text) + start]
        assert not scored & set(range(start + 1, start + SCORED + 1)), "no token is scored twice"
        scored |= set(range(start + 1, start + SCORED + 1))
    with pytest.raises(PromptError, match="needs a context of"):
        cuts(tokenizer, 500, 300, 1, 0)
    with pytest.raises(PromptError, match="would hold what is scored after it"):
        cuts(tokenizer, 10**6, len(text) - SCORED + 1, 1, 0)
    assert cuts(tokenizer, 10**6, len(text) - SCORED, 1, 0)


def test_losses_have_one_figure_a_token_and_the_passage_as_cluster(context: Context) -> None:
    nll, kl, right = (context.losses([SNAPKV], prefix=300, measure=name) for name in ("nll", "kl", "right"))
    assert len(nll) == len(kl) == len(right) == 2 * SCORED and nll.contexts == 2
    assert not nll.higher and not kl.higher and right.higher and right.bounded
    assert min(kl.values) >= 0 and max(kl.values) > 0
    assert set(context.losses([], prefix=300, measure="kl").values) == {0.0}


def test_controls_are_run_on_the_same_items(context: Context) -> None:
    score = partial(context.losses, prefix=300)
    full, ours = score([]), score([SNAPKV])
    tested = controlled(score, full, ours, keep=0.5, length=300, whole=[SNAPKV | {"keep": 1.0}])
    names = [control.name for control in tested.controls]
    assert names == ["random eviction, keep 0.5", "the newest 150 alone", "the full budget"]
    assert [control.must for control in tested.controls] == ["lose", "shown", "hold"]
    whole = tested.controls[2].difference
    assert whole.value == pytest.approx(0, abs=2e-3) and not tested.controls[2].contradicts
    assert tested.controls[0].difference.value != 0 and tested.gate.estimate is not None
    with pytest.raises(ValueError, match="a control has one budget"):
        controlled(score, full, ours, length=300)


def test_the_promise_is_measured_bytes(context: Context) -> None:
    kept = context.promise([{"technique": "snapkv", "keep": 0.25}], 0.25, length=1024)
    assert kept.verdict() is Verdict.HOLDS and kept.estimate is not None and kept.estimate.value < 0.4
    assert context.promise([{"technique": "full"}], 0.25, length=1024).verdict() is Verdict.FAILS


def test_memory_of_a_batch_is_that_of_all_its_sequences(context: Context) -> None:
    weights = context.model.nbytes
    single, four = (context.peak([], 512, count) for count in (1, 4))
    cache = context.engine.memory.cache.footprint((), 512, 512).steady_bytes
    assert four - single >= 3 * cache > 0
    assert single > weights + cache
    small = context.peak([{"technique": "kivi", "bits": 2}], 512, 4)
    assert small < four - cache


def test_a_run_that_compresses_nothing_is_refused_unless_it_may(context: Context) -> None:
    whole = [SNAPKV | {"keep": 1.0}]
    with pytest.raises(MeasurementError, match="was compressed"):
        context.recall(whole, length=200)
    assert len(context.recall(whole, length=200, insist=False)) == SMALL.items
    for _ in range(2):  # what was not looked at is no answer to who insists
        assert context.losses(whole, prefix=300, insist=False)
        with pytest.raises(MeasurementError, match="was compressed"):
            context.losses(whole, prefix=300)
        with pytest.raises(MeasurementError, match="was compressed"):
            context.recall(whole, length=200)


def test_rates_are_paired_by_round_and_void_where_others_disturb(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def side(name: str, rate: float) -> Any:
        return lambda: order.append(name) or rate

    made = timing.rounds({"a": side("a", 2.0), "b": side("b", 1.0)}, 3)
    assert order == ["a", "b", "b", "a", "a", "b"] and list(made["a"].values) == [2.0] * 3
    monkeypatch.setattr(timing, "listening", _disturbed)
    assert timing.rounds({"a": side("a", 2.0)}, 2)["a"].void == "others took 30% of the machine"


class _disturbed:
    def __enter__(self) -> Noise:
        return Noise(0.3)

    def __exit__(self, *_: object) -> None:
        return None


def test_speed_is_two_sides_of_alternating_rounds(context: Context) -> None:
    ours, baseline = context.speed([SNAPKV], length=300, steps=4)
    assert len(ours) == len(baseline) == SMALL.rounds and min(*ours.values, *baseline.values) > 0
    assert not ours.bounded and ours.higher and contexts.KEPT_PROMPTS


def test_other_weights_are_measured_beside_and_closed_with_it(model: Any) -> None:
    with Context(model, "tiny", threads=1, budget=SMALL, seed=5) as own:
        beside = own.other(tiny_model(packed=True, seed=1), "view")
        assert beside.seed == 5 and beside.budget is SMALL
        assert beside.losses([], prefix=300) != own.losses([], prefix=300)
        assert SHORT.items >= 30
