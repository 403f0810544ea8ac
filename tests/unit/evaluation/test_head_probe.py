"""The head probes: questions with known places, the papers' rules, and a run that watches without changing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import ByteTokenizer, tiny_model
from torch import Tensor

from thrifty.arrays import Floats
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.errors import PromptError
from thrifty.evaluation.forcing import MeasurementError
from thrifty.evaluation.heads import probe as head_probe
from thrifty.evaluation.heads.items import ProbeItem, ProbeItems
from thrifty.evaluation.heads.probe import ProbeSettings, look, probe, reasoning, retrieval
from thrifty.models.model import Model
from thrifty.reference import build
from thrifty.reference.attention import causal

SHORT = ProbeSettings(lengths=(600,), depths=2)
WINDOWS = (None, 50, None)


@pytest.fixture(scope="module")
def items() -> ProbeItems:
    return ProbeItems(ByteTokenizer())


@pytest.fixture(params=["reference", "native"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    native = request.param == "native"
    engine = Engine(tiny_model(packed=True, windows=WINDOWS), native=native, prefix_tree=False, threads=1)
    yield engine
    ledger = engine.memory.ledger
    assert ledger.current == ledger.bytes_of("weights") + ledger.bytes_of("workspace"), ledger.categories()
    engine.close()


def text(tokens: Any) -> str:
    return ByteTokenizer().decode(tokens)


@pytest.mark.parametrize("kind", ["r", "r2"])
@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_places_are_those_of_the_needle(items: ProbeItems, kind: str, depth: float) -> None:
    seen = set()
    for seed in range(8):
        item = items.make(kind, 900, depth, random.Random(seed))
        answer, told = text(item.tokens[-item.answer :]), text(item.tokens[item.needle.start : item.needle.stop])
        assert answer[0] == " " and answer[1:].isdigit()
        assert text(item.tokens[item.correct.start : item.correct.stop]) == answer
        assert item.needle.start < item.correct.start and item.correct.stop < item.needle.stop
        assert told.endswith(f"{answer}.") or kind == "r2"
        numbers = [word for word in told.replace(".", "").split() if word.isdigit()]
        assert len(numbers) == (2 if kind == "r2" else 1) and answer[1:] in numbers
        seen.add(numbers.index(answer[1:]))
        assert 600 < len(item.tokens) <= 900 + item.answer
        middle = (item.needle.start + item.needle.stop) / 2 / len(item.tokens)
        assert abs(middle - (0.1 + 0.6 * depth)) < 0.3
    assert len(seen) == (2 if kind == "r2" else 1), "the right number comes first in some, last in others"


def test_a_length_without_room_says_how_much_is_needed(items: ProbeItems) -> None:
    with pytest.raises(PromptError, match="a prompt of 20 tokens does not hold a question .*; use at least"):
        items.make("r2", 20, 0.5, random.Random(0))


def made_item(seed: int, slots: int, answer: int) -> tuple[ProbeItem, Floats]:
    generator = np.random.default_rng(seed)
    tokens = tuple(generator.integers(0, 3, slots).tolist())
    start = int(generator.integers(0, slots - answer - 2))
    needle = range(start, min(slots, start + answer + 4))
    item = ProbeItem(tokens, answer, needle, range(needle.start + 1, needle.start + 1 + answer))
    looks = generator.random((3, answer, slots), np.float32)
    return item, looks / looks.sum(axis=-1, keepdims=True)


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), slots=st.integers(12, 60), answer=st.integers(1, 6))
def test_rules_are_the_papers(seed: int, slots: int, answer: int) -> None:
    item, probabilities = made_item(seed, slots, answer)
    found, weighed = retrieval(item, probabilities), reasoning(item, probabilities)
    said = item.tokens[slots - answer :]
    for head in range(3):
        hits, mass = 0.0, 0.0
        for row in range(answer):
            weights = probabilities[head, row].tolist()
            ranked = sorted(range(slots), key=lambda slot: -weights[slot])
            hits += ranked[0] in item.needle and item.tokens[ranked[0]] == said[row]
            mass += sum(weights[slot] for slot in ranked[:answer] if slot in item.correct)
        assert float(found[head]) == pytest.approx(hits / answer)
        assert float(weighed[head]) == pytest.approx(mass / answer, abs=1e-6)


def dense(model: Model, layer: int, item: ProbeItem) -> Floats:
    """Attention [heads, answer rows, slots] of a layer by the reference decoder itself."""
    seen: list[tuple[Tensor, Tensor]] = []

    def record(index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if index == layer:
            seen.append((query, key))
        return plain(index, query, key, value)

    plain = causal(model.config)
    with torch.no_grad():
        build(model).decoder(torch.tensor(item.tokens), torch.arange(len(item.tokens)), record)
    query, key = seen[0]
    n, group = len(item.tokens), model.config.heads // model.config.kv_heads
    logits = torch.einsum("nhd,shd->hns", query, key.repeat_interleave(group, 1)) * model.config.query_scale
    weights = logits.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
    found: Floats = weights[:, n - item.answer - 1 : n - 1].numpy()
    return found


def greedy(engine: Engine, prompt: list[int], count: int) -> list[int]:
    answer: list[int] = []
    for _ in range(count):
        handle = engine.submit(
            Request(prompt=[*prompt, *answer], sampling=SamplingParameters(max_tokens=1), share_prefix=False)
        )
        answer += handle.result().token_ids
    return answer


def test_a_look_is_the_models_own_attention_and_only_at_what_it_says(engine: Engine, items: ProbeItems) -> None:
    model = engine.model
    asked = items.make("r", 500, 0.5, random.Random(1))
    prompt = list(asked.tokens[: -asked.answer])
    said = greedy(engine, prompt, 3)
    item = ProbeItem((*prompt, *said), 3, asked.needle, asked.correct)
    found = look(engine, item, reasoning)
    assert found is not None and found.shape == (2, 4)
    for rank, layer in enumerate((0, 2)):
        assert np.allclose(found[rank], reasoning(item, dense(model, layer, item)), atol=0.02)
    wrong = ProbeItem((*prompt, *said[:2], said[2] ^ 1), 3, asked.needle, asked.correct)
    assert look(engine, wrong, reasoning) is None


def test_a_model_that_answers_nothing_cannot_be_scored(engine: Engine) -> None:
    steps: list[int] = []
    with pytest.raises(MeasurementError, match="answers 0 of 2 questions of the head probe 'r2'.*Use shorter"):
        probe(engine, "r2", SHORT, lambda: steps.append(1))
    assert len(steps) == 2


def test_scores_are_the_mean_of_what_was_answered(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    earned = iter([np.full((2, 4), 1.0, np.float32), None, np.full((2, 4), 2.0, np.float32), None])
    monkeypatch.setattr(head_probe, "look", lambda *_: next(earned))
    found = probe(engine, "r", ProbeSettings(lengths=(500, 600), depths=2))
    assert found.asked == 4 and found.used == 2 and found.layers == (0, 2)
    assert np.array_equal(found.array(), np.full((2, 4), 1.5))
    assert found.settings["lengths"] == (500, 600)


def test_settings_out_of_range_are_refused(engine: Engine) -> None:
    with pytest.raises(PromptError, match="depths = 0"):
        ProbeSettings(depths=0)
    with pytest.raises(PromptError, match="length = 9000 exceeds this model's context; use at most 4096"):
        probe(engine, "r", ProbeSettings(lengths=(9000,)))
