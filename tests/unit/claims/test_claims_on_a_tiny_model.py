"""The real claims through the real engine: what they ask for exists, is measured, and is told."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import tiny_config, tiny_model

from thrifty import claims, registry
from thrifty.claims.harness import reading
from thrifty.claims.harness.budget import SHORT
from thrifty.claims.harness.context import Context
from thrifty.claims.harness.parts import Verdict
from thrifty.claims.harness.statistics import Scores
from thrifty.engine.engine import Engine
from thrifty.evaluation.heads import probe as head_probe
from thrifty.models.config.model_config import ExpertConfig
from thrifty.models.head_scores import HeadScores
from thrifty.models.loading import load

LENGTH = 1600  # tokens, which are bytes here: questions, sentences and documents have to fit
TINY = dataclasses.replace(SHORT, items=8, tokens=512, answers=2, rounds=2)
SMALL: dict[str, dict[str, Any]] = {
    "amp": {"STEPS": 1, "SEQUENCES": 2, "TOKENS": 16, "DECODED": 4},
    "gemfilter": {"LONG": 512},
    "ggd": {"LEARNED": -100.0, "STEPS": {}, "LONGER": 2, "LENGTH": 16, "HELD_OUT": 2},
    "compactifai": {"STEPS": 1, "SEQUENCES": 4, "TOKENS": 16},
    "kivi": {"BATCH": 512},
    "lavida": {"TIMED": "letters-twin", "PROMPT": 64},
    "kvmerger": {"BOUND": 0.5},
    "kvzip": {"SHORTEST": 1024},
    "lora-ft": {"STEPS": 1, "SEQUENCES": 4, "HELD_OUT": 2, "TOKENS": 16},
    "marlin": {"SEQUENCES": 1, "TOKENS": 16},
    "maskllm": {"STEPS": 1, "LAYERS": 1, "SEQUENCES": 2, "TOKENS": 16},
    "minikv": {"PROMPT": 1600, "ANSWER": 8},
    "nxmiformer": {"STEPS": 1, "LAYERS": 1, "SEQUENCES": 2, "TOKENS": 16},
    "headinfer": {"LENGTH": 256, "STEPS": 6, "TIMED": 4},
    "quest": {"LONG": 512, "STEPS": 8},
    "snapkv": {"LONG": 512, "STEPS": 8},
    "lookahead-pain": {"ANSWER": 12, "WARMED": 2, "LENGTH": 64},
    "speculative": {"ANSWER": 12, "SAMPLED": 8, "LENGTH": 64},
    "streaming": {"PREFIX": 1024, "CACHE": 256},
}


OF_EXPERTS = {"milo", "puzzlemoe"}
"""Claims about mixtures of experts."""
OF_MASKS = {"daedal", "dimple", "lavida"}
"""Claims about models that fill in masks."""


@pytest.fixture(scope="module")
def mixture() -> Iterator[Context]:
    plain = tiny_config(2)
    layers = tuple(dataclasses.replace(layer, experts=True) for layer in plain.layers)
    experts = ExpertConfig(4, 2, 64, normalise_probabilities=True, shared_intermediate_size=64, shared_gate=True)
    model = tiny_model(config=dataclasses.replace(plain, layers=layers, experts=experts))
    with Context(model, "tiny mixture", threads=1, budget=TINY) as made:
        yield made


@pytest.fixture(scope="module")
def letters() -> Iterator[Context]:
    with Context(load("letters-diffusion"), "letters", threads=1, budget=TINY) as made:
        yield made


@pytest.fixture(scope="module")
def context() -> Iterator[Context]:
    # Layers enough that three may stay whole, of 35 % kept.
    with Context(tiny_model(packed=True, layers=10), "tiny", threads=1, budget=TINY) as made:
        yield made


def made_up_scores(engine: Engine, kind: str) -> HeadScores:
    config = engine.model.config
    layers = tuple(range(len(config.layers)))
    scores = tuple(tuple(float(1 + layer * head) for head in range(config.heads)) for layer in layers)
    version = engine.model.version
    return HeadScores(
        kind=kind, version=version, layers=layers, scores=scores, asked=1, used=1, settings={}, date="2026-01-01"
    )


@pytest.fixture(autouse=True)
def random_weights_will_do(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Random weights answer nothing and predict nothing: what they are asked is looked at, not what they say."""
    monkeypatch.setattr(head_probe, "probe", made_up_scores)
    monkeypatch.setattr(reading, "LENGTHS", {SHORT.name: LENGTH})
    for name in claims.names():
        module = importlib.import_module(f"thrifty.claims.{name.replace('-', '_')}")
        for guard in ("unanswered", "unpredicted"):
            monkeypatch.setattr(module, guard, lambda full: "", raising=False)


HELD = ("amp", "any-precision", "llm-int8", "rtn", "xtc")
"""Claims on weights with a control that must lose and one that must hold."""


@pytest.mark.slow
@pytest.mark.parametrize("name", claims.names())
def test_a_claim_measures_what_it_names(
    name: str, context: Context, mixture: Context, letters: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = mixture if name in OF_EXPERTS else letters if name in OF_MASKS else context
    module = f"thrifty.claims.{name.replace('-', '_')}"
    for constant, value in SMALL.get(name, {}).items():
        monkeypatch.setattr(f"{module}.{constant}", value)
    context.ran.clear()
    measurement = claims.load(name).measure(context)
    assert measurement.verdict() is not None
    assert measurement.setting and measurement.counts
    assert measurement.controls or name == "fastgen", "nothing is pruned of heads with random weights"
    if name != "fastgen" and name in registry.names("cache"):
        assert any(name in tables for tables in context.ran) or name == "scbench"
        assert any("random-eviction" in tables for tables in context.ran) or name == "headinfer", "it evicts nothing"
    if name in registry.names("prompt"):
        assert any(name in tables for tables in context.ran)
        assert any("random-tokens" in tables or "random-eviction" in tables for tables in context.ran)
    if name in HELD and measurement.controls:
        assert {control.must for control in measurement.controls} >= {"lose", "hold"}
    for part in (measurement.headline, *measurement.parts, *measurement.gates):
        assert any(letter.isalpha() for letter in part.told())


def test_a_prompt_is_as_long_as_the_papers_where_budget_and_context_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LENGTHS", {"20": 1024, "120": 2048})

    class Sized:
        def __init__(self, budget: str, length: int) -> None:
            self.budget, self.length = dataclasses.replace(SHORT, name=budget), length

    def tokens(budget: str, length: int, paper: int) -> int:
        return reading.prompt_length(Sized(budget, length), paper)  # type: ignore[arg-type]

    assert [tokens(budget, 32768, 16384) for budget in ("20", "120", "overnight")] == [1024, 2048, 16384]
    assert tokens("overnight", 8192, 16384) == 8192 - reading.ANSWER
    assert tokens("120", 32768, 1500) == 1500


def test_scores_of_several_tasks_keep_their_contexts_apart() -> None:
    first = Scores((1.0, 0.0), ("a", "a"))
    pooled = reading.pooled([first, Scores((1.0, 1.0), ("a", "b"))])
    assert pooled.values == (1.0, 0.0, 1.0, 1.0) and pooled.contexts == 3 == len(set(pooled.clusters))


def test_kinds_of_task_that_the_full_cache_does_not_answer_are_left_out(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def task(self: Context, name: str, cache: Any, *, items: int, **options: Any) -> Scores:
        asked.append((name, items))
        return Scores((float(name in ("recall", "long-documents")),) * items, tuple(map(str, range(items))))

    monkeypatch.setattr(Context, "task", task)
    score = reading.Reading(context, LENGTH)
    assert score([]).mean == 1.0 and len(score([])) == TINY.items
    assert {items for name, items in asked[:4]} == {TINY.items // 4}, "a first look at each kind"
    assert asked[4:6] == [("recall", TINY.items // 2), ("long-documents", TINY.items // 2)]
    assert score.told == (
        "proxy for the paper's sets: a key in prose, real documents (left out, for the full cache answers under 20%: "
        "one of four keys, made-up documents)"
    )


def test_kinds_of_task_are_chosen_by_items_that_are_not_judged(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The full cache has luck with the judged items of one kind, and would answer none of its others."""
    asked: list[tuple[str, int, int]] = []

    def task(self: Context, name: str, cache: Any, *, items: int, seed: int, **options: Any) -> Scores:
        asked.append((name, seed, items))
        lucky = name == "ruler-qa-made-1" and seed == self.seed
        return Scores((float(name == "recall" or lucky),) * items, tuple(map(str, range(items))))

    monkeypatch.setattr(Context, "task", task)
    monkeypatch.setattr(context, "budget", dataclasses.replace(TINY, items=400))
    score = reading.Reading(context, LENGTH)
    score([])
    assert [proxy.aware[0] for proxy in score.answered] == ["recall"]
    assert asked[-1] == ("recall", context.seed, 400)
    assert {(seed != context.seed, items) for _, seed, items in asked[:-1]} == {(True, reading.LOOKED)}


def test_a_model_that_answers_none_is_asked_all_and_told_so(context: Context) -> None:
    score = reading.Reading(context, LENGTH, "agnostic")
    full = score([])
    assert score.answered == () and full.contexts == 8 and len(full) == 16
    assert reading.unanswered(full).startswith("a model that answers 20% of the questions")


def test_word_problems_that_a_model_cannot_do_are_told_and_not_judged(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scored(right: int) -> Any:
        return lambda *_, **__: Scores((1.0,) * right + (0.0,) * (20 - right), tuple(map(str, range(20))))

    monkeypatch.setattr(Context, "task", scored(1))
    missing = reading.word_problems(context, [], None)
    assert missing.estimate is None and missing.missing.endswith("this one answers 5%")
    monkeypatch.setattr(Context, "task", scored(10))
    solved = reading.word_problems(context, [], None)
    assert solved.estimate is not None and solved.estimate.value == 1.0


@pytest.mark.parametrize("name", sorted(OF_EXPERTS))
def test_a_claim_about_experts_needs_a_model_that_has_some(name: str, context: Context) -> None:
    measurement = claims.load(name).measure(context)
    assert measurement.verdict() is Verdict.UNTESTABLE
    assert "a mixture of experts, such as mixture-2m" in measurement.headline.told()


@pytest.mark.parametrize("name", sorted(OF_MASKS))
def test_a_claim_about_masks_needs_a_model_that_has_them(name: str, context: Context) -> None:
    measurement = claims.load(name).measure(context)
    assert measurement.verdict() is Verdict.UNTESTABLE
    assert "a model that fills in masks, such as letters-diffusion" in measurement.headline.told()
