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
from tests.tiny import EOS, ByteTokenizer, tiny_model
from torch import Tensor

from thrifty.arrays import Floats
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.errors import PromptError
from thrifty.evaluation.forcing import MeasurementError
from thrifty.evaluation.heads import looking
from thrifty.evaluation.heads import probe as head_probe
from thrifty.evaluation.heads.items import ProbeItem, ProbeItems, ProbeQuestion
from thrifty.evaluation.heads.looking import Answered, answered, first_line, look, right
from thrifty.evaluation.heads.probe import ProbeSettings, probe
from thrifty.evaluation.heads.riddles import RIDDLES, riddle
from thrifty.evaluation.heads.rules import reasoning, retrieval
from thrifty.models.model import Model
from thrifty.reference import build
from thrifty.reference.attention import causal

SHORT = ProbeSettings(lengths=(700,), depths=2)
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


def part(question: ProbeQuestion, places: range) -> str:
    return text(question.prompt[places.start : places.stop])


@pytest.mark.parametrize("kind", ["r", "r2"])
@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_places_are_those_of_the_needle(items: ProbeItems, kind: str, depth: float) -> None:
    seen = set()
    for seed in range(12):
        question = items.make(kind, 1000, depth, random.Random(seed))
        told = part(question, question.needle)
        assert part(question, question.correct) == f" {question.right}"
        assert question.needle.start < question.correct.start and question.correct.stop < question.needle.stop
        assert told.endswith(".") and question.right in told
        assert (question.wrong in told and bool(question.wrong)) == (kind == "r2")
        assert not any(letter.isdigit() for letter in text(question.prompt))
        seen.add(kind == "r2" and told.index(question.right) < told.index(question.wrong))
        assert 700 < len(question.prompt) + len(question.expected) <= 1000
        middle = (question.needle.start + question.needle.stop) / 2 / len(question.prompt)
        assert abs(middle - (0.1 + 0.6 * depth)) < 0.3
    assert len(seen) == (2 if kind == "r2" else 1), "the right answer comes first in some, last in others"


def test_a_lead_is_followed_by_the_answer_and_a_riddle_has_none(items: ProbeItems) -> None:
    asked = items.make("r", 900, 0.5, random.Random(3))
    assert asked.lead and text(asked.expected) == f" {asked.right}"
    assert text(asked.prompt).endswith(" a")
    free = items.make("r2", 900, 0.5, random.Random(3))
    assert not free.lead and text(free.prompt).endswith("assistant: ")


def test_riddles_are_answered_by_their_reason() -> None:
    """Both answers are told of one of two people; which of them is asked for follows from the reason alone."""
    for seed in range(40):
        told = riddle(random.Random(seed))
        reason, *held = told.needle
        form = next(form for form in RIDDLES if _fits(form.reason, reason))
        first, second = _names(form.reason, reason)
        owner = second if form.second else first
        assert any(sentence.startswith(owner) and told.answer in sentence for sentence in held)
        assert told.answer in told.needle[told.correct] and told.wrong not in told.needle[told.correct]
        assert told.answer not in told.question and told.wrong not in told.question


def _fits(form: str, sentence: str) -> bool:
    middle = form.split("{first}")[1].split("{second}")[0]
    return middle in sentence


def _names(form: str, sentence: str) -> tuple[str, str]:
    middle = form.split("{first}")[1].split("{second}")[0]
    first, _, rest = sentence.partition(middle)
    return first, rest.rstrip(".")


def test_a_length_without_room_says_how_much_is_needed(items: ProbeItems) -> None:
    with pytest.raises(PromptError, match="a prompt of 20 tokens does not hold a question .*; use at least"):
        items.make("r2", 20, 0.5, random.Random(0))


def test_a_model_without_the_words_cannot_be_probed() -> None:
    class Narrow(ByteTokenizer):
        def encode(self, text: str, add_bos: bool | None = None, control: bool = True) -> list[int]:
            return super().encode(text.replace("b", "_"), add_bos, control)

    with pytest.raises(MeasurementError, match="not testable with this model: its vocabulary has no .*, words of the"):
        for seed in range(20):
            ProbeItems(Narrow()).make("r", 900, 0.5, random.Random(seed))


def made_item(seed: int, slots: int, answer: int) -> tuple[ProbeItem, Floats]:
    generator = np.random.default_rng(seed)
    tokens = tuple(generator.integers(0, 3, slots).tolist())
    start = int(generator.integers(0, slots - answer - 2))
    needle = range(start, min(slots, start + answer + 4))
    right_length = int(generator.integers(1, answer + 1))
    item = ProbeItem(tokens, answer, needle, range(needle.start + 1, needle.start + 1 + right_length))
    looks = generator.random((3, answer, slots), np.float32)
    return item, looks / looks.sum(axis=-1, keepdims=True)


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), slots=st.integers(12, 60), answer=st.integers(1, 6))
def test_rules_are_the_papers(seed: int, slots: int, answer: int) -> None:
    item, probabilities = made_item(seed, slots, answer)
    found, weighed = retrieval(item, probabilities), reasoning(item, probabilities)
    said, count = item.tokens[slots - answer :], len(item.correct)
    for head in range(3):
        hits, mass = 0.0, 0.0
        for row in range(answer):
            weights = probabilities[head, row].tolist()
            ranked = sorted(range(slots), key=lambda slot: -weights[slot])
            hits += ranked[0] in item.needle and item.tokens[ranked[0]] == said[row]
            mass += sum(weights[slot] for slot in ranked[:count] if slot in item.correct)
        assert float(found[head]) == pytest.approx(hits / answer)
        assert float(weighed[head]) == pytest.approx(mass / count, abs=1e-6)


@pytest.mark.parametrize(
    ("said", "fits"),
    [
        ("dusty velvet mask", True),
        ("A dusty velvet mask.", True),
        ("Thorne carries the dusty velvet mask", True),
        ("velvet mask", True),
        ("mask", False),  # F1 of one word of three: exactly one half
        ("The older one carries, as everybody there knows, a dusty velvet mask of old", False),
        ("dusty velvet mask and carved brass bell", False),
        ("carved brass bell", False),
        ("", False),
    ],
)
def test_a_free_answer_is_right_by_its_words(said: str, fits: bool) -> None:
    assert right(said, "dusty velvet mask", "carved brass bell") == fits


def test_a_free_answer_ends_with_its_line() -> None:
    tokenizer = ByteTokenizer()
    assert text(first_line(tokenizer, tokenizer.encode("a mask\nof wool"))) == "a mask"
    assert text(first_line(tokenizer, tokenizer.encode("\na mask"))) == "\na mask"
    assert first_line(tokenizer, []) == []


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
    asked = items.make("r", 600, 0.5, random.Random(1))
    said = greedy(engine, list(asked.prompt), 3)
    item = asked.answered(said)
    found = look(engine, item, reasoning)
    assert found is not None and found.shape == (2, 4)
    for rank, layer in enumerate((0, 2)):
        assert np.allclose(found[rank], reasoning(item, dense(model, layer, item)), atol=0.02)
    wrong = asked.answered((*said[:2], said[2] ^ 1))
    assert look(engine, wrong, reasoning) is None


def test_a_riddle_counts_with_the_models_own_words(
    engine: Engine, items: ProbeItems, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = items.make("r2", 700, 0.5, random.Random(1))
    said = looking.free_answer(engine, asked.prompt)
    assert 0 < len(said) <= looking.LONGEST and EOS not in said
    assert answered(engine, asked) == Answered(None), "random weights know nothing"
    monkeypatch.setattr(looking, "right", lambda *_: True)
    item = answered(engine, asked).item
    if item is not None:  # its first line may be empty
        assert item.tokens[: len(asked.prompt)] == asked.prompt and item.answer <= len(said)
        assert look(engine, item, reasoning) is not None, "what it says in one prefill is what it said token by token"


def test_a_model_that_answers_nothing_cannot_be_scored(engine: Engine) -> None:
    steps: list[int] = []
    with pytest.raises(
        MeasurementError, match="not testable with this model: it answers 0 of 2 questions of the head probe 'r2'"
    ):
        probe(engine, "r2", SHORT, lambda: steps.append(1))
    assert len(steps) == 2


def test_scores_are_the_mean_of_what_was_answered(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    earned = iter([np.full((2, 4), 1.0, np.float32), None, np.full((2, 4), 2.0, np.float32), None])
    monkeypatch.setattr(head_probe, "look", lambda *_: next(earned))
    found = probe(engine, "r", ProbeSettings(lengths=(700, 800), depths=2))
    assert found.asked == 4 and found.used == 2 and found.layers == (0, 2)
    assert np.array_equal(found.array(), np.full((2, 4), 1.5))
    assert found.settings["lengths"] == (700, 800)


def test_fewer_than_a_quarter_of_the_answers_are_too_few(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    earned = iter([np.ones((2, 4), np.float32)] + [None] * 7)
    monkeypatch.setattr(head_probe, "look", lambda *_: next(earned))
    with pytest.raises(MeasurementError, match="answers 1 of 8 questions .*; 2 right ones are needed .*Use shorter"):
        probe(engine, "r", ProbeSettings(lengths=(700,), depths=8))


def test_who_guesses_between_two_answers_has_no_scores(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many wrong answers as right ones: its looks say nothing of reasoning."""
    right_one = Answered(ProbeItem((1, 2, 3), 1, range(1), range(1)))
    answers = iter([right_one, Answered(None, misled=True)] * 4 + [right_one] * 8)
    monkeypatch.setattr(head_probe, "answered", lambda *_: next(answers))
    monkeypatch.setattr(head_probe, "look", lambda *_: np.ones((2, 4), np.float32))
    settings = ProbeSettings(lengths=(700,), depths=8)
    with pytest.raises(MeasurementError, match="answers 4 of 8 .*'r2' and gives the wrong one of two answers to 4; 8"):
        probe(engine, "r2", settings)
    assert probe(engine, "r2", settings).used == 8


def test_settings_out_of_range_are_refused(engine: Engine) -> None:
    with pytest.raises(PromptError, match="depths = 0"):
        ProbeSettings(depths=0)
    with pytest.raises(PromptError, match="sample = 0"):
        ProbeSettings(sample=0)
    with pytest.raises(PromptError, match="length = 9000 exceeds this model's context; use at most 4096"):
        probe(engine, "r", ProbeSettings(lengths=(9000,)))
    with pytest.raises(PromptError, match="length = 9000 exceeds"):
        probe(engine, "kvzip", ProbeSettings(sample=9000))
