"""The tasks on a tiny random model: what is compressed, what is fed after it, and how answers are graded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tests.tiny import BOS, ByteTokenizer, tiny_model

from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.errors import PromptError
from thrifty.evaluation import tasks
from thrifty.evaluation.forcing import MeasurementError, force
from thrifty.evaluation.tasks import TaskError
from thrifty.evaluation.tasks._answering import Answering, names
from thrifty.evaluation.tasks.reasoning import settings_of
from thrifty.evaluation.tasks.task import Item, Record, Task

KIVI = [{"technique": "kivi", "bits": 2, "residual": 0}]
IDLE = [{"technique": "kivi", "bits": 2, "residual": 100_000}]
GENERATED = ("recall", "recall-many", "multi-turn", "multi-request", "tracing", "aggregation", "frequent-words")
LENGTH, LONG = 640, 2400
MADE = [name for name in tasks.names() if not tasks.load(name).package]  # the others are read: see their own tests
LONGER = ("ruler-", "scbench-", "long-")
QUICK = ("ruler-niah-multikey-2", "ruler-vt", "scbench-kv", "scbench-repoqa-and-kv", "long-documents")
RUN = [
    name if name in QUICK or not name.startswith(LONGER) else pytest.param(name, marks=pytest.mark.slow)
    for name in MADE
]
"""Those of RULER and SCBench run alike, so that a few of them stand for the rest."""


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine(tiny_model(packed=True), prefix_tree=False, threads=1)
    yield engine
    engine.close()


@pytest.fixture
def submitted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Every request that goes to the engine, forks included."""
    found: list[Request] = []
    submit, fork = Engine.submit, Engine.fork

    def watched(self: Engine, request: Request, *rest: Any) -> Any:
        found.append(request)
        return submit(self, request, *rest)

    def forked(self: Engine, *words: Any) -> Any:
        handle = fork(self, *words)
        found.append(handle.request)
        return handle

    monkeypatch.setattr(Engine, "submit", watched)
    monkeypatch.setattr(Engine, "fork", forked)
    return found


def text(tokens: Any) -> str:
    return ByteTokenizer().decode(tokens)


def length_of(name: str) -> int:
    """Tokens (of one byte) that a task's context needs to hold something to ask about."""
    return LONG if name.startswith(LONGER) else LENGTH


def items_of(name: str, count: int = 3, seed: int = 0, **options: Any) -> tuple[Task, list[Item]]:
    pytest.importorskip("reasoning_gym") if name in ("arithmetic", "reasoning") else None
    task = tasks.load(name, **{"length": length_of(name), **options})
    return task, task.items(ByteTokenizer(), count, seed)


@pytest.mark.parametrize("name", MADE)
def test_items_are_those_of_the_seed_and_fit_their_length(name: str) -> None:
    task, found = items_of(name, 4)
    assert task.items(ByteTokenizer(), 2, 0) == found[:2], "the first of four are those of two"
    assert len({item.identity for item in found}) == 4
    other = task.items(ByteTokenizer(), 4, 1)
    assert not {item.identity for item in other} & {item.identity for item in found}
    for item in found:
        assert 0.5 * task.length < len(item.prompt) <= task.length
        assert all(turn.tokens for turn in item.turns), "something is fed after compression"
        fed = sum(len(turn.tokens) for turn in item.turns)
        assert item.room > len(item.prompt) + fed or name in ("perplexity", "kl")


@pytest.mark.parametrize("name", RUN)
def test_a_run_scores_between_0_and_1_and_keeps_to_its_room(
    name: str, engine: Engine, submitted: list[Request]
) -> None:
    task, (item,) = items_of(name, 1)
    record = task.run(engine, item, KIVI)
    assert 0 <= record.score <= 1 and record.seconds > 0
    assert (record.task, record.item) == (name, item.identity)
    assert Record.from_dict(record.as_dict()) == record
    for request in submitted:
        assert request.prompt[: len(item.prompt)] == item.prompt and len(request.prompt) <= len(item.prompt) + 1
        assert request.forced and request.cache == KIVI and not request.share_prefix
        assert len(request.prompt) + len(request.forced) + request.free <= item.room


@pytest.mark.parametrize("name", RUN)
def test_a_recipe_that_compresses_nothing_is_refused(name: str, engine: Engine) -> None:
    task, (item,) = items_of(name, 1)
    with pytest.raises(MeasurementError, match=r"nothing of a prompt of \d+ tokens was compressed .* larger --length"):
        task.run(engine, item, IDLE)
    assert not engine.busy


@pytest.mark.parametrize("name", GENERATED)
def test_agnostic_items_compress_before_the_question_and_aware_ones_with_it(name: str) -> None:
    asked = {"aggregation": "most often", "frequent-words": "most often", "tracing": "Which cities have"}
    for mode, inside in (("agnostic", False), ("aware", True)):
        _, found = items_of(name, mode=mode)
        for item in found:
            question = asked.get(name, "What is the secret number of")
            assert (question in text(item.prompt)) is inside
            assert (question in text(item.turns[0].tokens)) is not inside
            assert all(question in text(turn.tokens) for turn in item.turns[1:])
            assert "assistant: " in text(item.turns[0].tokens), "the answer's own beginning is never compressed"


@pytest.mark.parametrize("name", GENERATED)
def test_the_answer_is_in_the_context_and_not_in_what_is_fed(name: str) -> None:
    _, found = items_of(name)
    for item in found:
        for turn in item.turns:
            assert all(names(text(item.prompt), one) for one in turn.expected)
            assert not any(names(text(turn.tokens), one) for one in turn.expected)


def test_many_keys_stand_in_the_context_and_one_is_asked() -> None:
    _, found = items_of("recall-many", keys=5)
    for item in found:
        assert text(item.prompt).count("The secret number of") == 5
        assert len(item.turns) == 1


def test_an_answer_is_graded_by_whole_words() -> None:
    assert names("It is 4711.", "4711") and names("Dragon, tiger", "dragon")
    assert not names("It is 14711", "4711") and not names("dragonfly", "dragon")


def test_the_choice_is_the_option_of_the_highest_likelihood(engine: Engine) -> None:
    task, (item,) = items_of("choice", 1)
    record = task.run(engine, item, [])
    (turn,) = item.turns
    expected = []
    for option, ending in zip(turn.options, item.material["endings"], strict=True):
        steps = list(force(engine, item.prompt, [*turn.tokens, *option], [], logits=True))[len(turn.tokens) :]
        losses = [
            float(step.logits[token] - np.log(np.exp(step.logits.astype(np.float64)).sum()))
            for step, token in zip(steps, option, strict=True)
            if step.logits is not None
        ]
        expected.append(sum(losses) / len(ending))
    assert record.details["log_likelihood_per_character"] == pytest.approx(expected, abs=1e-3)
    assert record.output == item.material["endings"][expected.index(max(expected))]
    assert text(turn.options[item.material["right"]]).strip() == record.expected


def test_kl_is_that_of_quality_and_nothing_between_equals(engine: Engine) -> None:
    from thrifty.evaluation import quality

    task, (item,) = items_of("kl", 1, scored=40)
    baseline, same = task.compare(engine, engine, item, [])
    assert baseline.details == same.details == {"kl": 0.0, "top1": 1.0, "nll": baseline.details["nll"]}
    _, compressed = task.compare(engine, engine, item, KIVI)
    passage = quality.Passage(item.prompt, item.turns[0].tokens)
    with quality.Baseline.measure(engine, passage) as reference:
        found = quality.measure(engine, reference, KIVI, compresses=True).quality
    assert found is not None
    assert compressed.details["kl"] == pytest.approx(found.kl.value) and found.kl.value > 0
    assert compressed.details["nll"] == pytest.approx(found.nll)
    assert compressed.details["top1"] == pytest.approx(found.top1.value)
    alone = tasks.load("perplexity", length=LENGTH, scored=40).run(engine, item, KIVI)
    assert (alone.score, alone.details["nll"]) == (compressed.score, pytest.approx(compressed.details["nll"]))


def test_arithmetic_shows_solved_examples_and_grades_by_value() -> None:
    task, found = items_of("arithmetic")
    assert isinstance(task, Answering)
    for item in found:
        assert text(item.prompt).count("Answer:") > 2
        assert str(item.material["question"]) not in text(item.prompt)
        (turn,) = item.turns
        assert task.grade(item, turn, f" {turn.expected[0]}.") == 1.0
        assert task.grade(item, turn, f" {int(turn.expected[0]) + 1}") < 0.5


REFUSED: list[tuple[Any, type[Exception], str]] = [
    (lambda: tasks.load("recal"), TaskError, "no task 'recal'. Did you mean 'recall'?"),
    (lambda: tasks.parse("recall:mood=aware"), TaskError, "has no option 'mood'. Did you mean 'mode'?"),
    (lambda: tasks.parse("recall:mode=some"), TaskError, "task 'recall', option 'mode'"),
    (lambda: tasks.parse("recall:aware"), TaskError, "is not OPTION=VALUE. Write e.g. recall:mode=aware"),
    (lambda: tasks.load("recall", keys=0), TaskError, "greater than or equal to 1"),
    (lambda: items_of("recall-many", keys=40, length=200), PromptError, "use a larger --length"),
    (lambda: items_of("aggregation", length=40), PromptError, "too short for a most frequent one"),
    (lambda: items_of("choice", length=30), PromptError, "no sentence fits a context of 30 tokens"),
    (lambda: items_of("arithmetic", length=16), PromptError, "no solved example fits 16 tokens"),
    (lambda: items_of("reasoning", dataset="letter_conting"), TaskError, "Did you mean 'letter_counting'?"),
]


@pytest.mark.parametrize(("make", "kind", "message"), REFUSED, ids=[message[:24] for *_, message in REFUSED])
def test_what_cannot_be_asked_is_refused(make: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as found:
        make()
    assert message in str(found.value)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(TaskError, match=r"pip install 'thrifty-engine\[eval\]'"):
        tasks.load("arithmetic").items(ByteTokenizer(), 1, 0)


def test_labels_read_back() -> None:
    task = tasks.parse("recall-many:keys=6:mode=aware", length=300)
    assert task.label == "recall-many:mode=aware:keys=6"
    assert tasks.parse(task.label, length=300) == task
    assert tasks.load("recall").label == "recall"


def test_a_model_without_a_chat_template_gets_plain_lines() -> None:
    class Plain(ByteTokenizer):
        has_chat_template = False

        def encode(self, text: str, add_bos: bool | None = None) -> list[int]:
            return super().encode(text, add_bos is None)

    (item,) = tasks.load("recall", length=300).items(Plain(), 1, 0)
    assert item.prompt[0] == BOS and BOS not in item.prompt[1:]
    assert text(item.turns[0].tokens).startswith("\n\nWhat is the secret number of")


def test_settings_of_a_data_set_are_read_and_told() -> None:
    pytest.importorskip("reasoning_gym")
    text = "reasoning:dataset=chain_sum:settings=max_terms=2+max_digits=1"
    task = tasks.parse(text, length=LENGTH)
    assert task.label == text and settings_of("a=1+b=true+c=-0.5+d=word") == {"a": 1, "b": True, "c": -0.5, "d": "word"}
    for item in task.items(ByteTokenizer(), 3, 0):
        numbers = [int(number) for number in re.findall(r"\d+", item.material["question"])]
        assert len(numbers) == 2 and max(numbers) < 10
    with pytest.raises(TaskError, match="'max_terms' of the settings 'max_terms' is not NAME=VALUE"):
        tasks.parse("reasoning:settings=max_terms").items(ByteTokenizer(), 1, 0)
    with pytest.raises(TaskError, match="reasoning-gym refuses 'letter_counting' with {'max_werds': 3}"):
        tasks.parse("reasoning:settings=max_werds=3").items(ByteTokenizer(), 1, 0)


@pytest.mark.long
def test_the_ten_generators_make_questions_of_either_half() -> None:
    pytest.importorskip("reasoning_gym")
    for half in ("tuning", "judged"):
        chosen = tasks.parse_all(["reasoning-ten"], length=1200, half=half)
        assert len(chosen) == len({task.label for task in chosen}) == 10
        for task in chosen:
            (item,) = task.items(ByteTokenizer(), 1, 0)
            assert isinstance(task, Answering)
            assert task.grade(item, item.turns[0], f" {item.turns[0].expected[0]}") == 1.0
