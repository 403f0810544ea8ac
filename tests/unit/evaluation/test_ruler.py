"""RULER's tasks: what is hidden is asked for and stands in the context, the counts are RULER's, and scores are told."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from tests.tiny import ByteTokenizer

from thrifty.errors import PromptError
from thrifty.evaluation import tasks
from thrifty.evaluation.tasks._answering import Answering
from thrifty.evaluation.tasks.ruler import _needles
from thrifty.evaluation.tasks.task import Item

NAMES = tasks.groups()["ruler"]
NEEDLES = [name for name in NAMES if "niah" in name]
HIDDEN = re.compile(r"A special (\w+) for (\S+) is: (\S+)\.")
WORD, NUMBER, UUID = r"[a-z]+-[a-z]+", r"\d{7}", r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def text(tokens: Any) -> str:
    return ByteTokenizer().decode(tokens)


def made(name: str, count: int = 3, length: int = 3000, **options: Any) -> tuple[Answering, list[Item]]:
    task = tasks.load(name, length=length, **options)
    assert isinstance(task, Answering)
    return task, task.items(ByteTokenizer(), count, 0)


def hidden(item: Item) -> dict[str, list[str]]:
    """The values of every key of a context, in its order."""
    values: dict[str, list[str]] = {}
    for _, key, value in HIDDEN.findall(text(item.prompt)):
        values.setdefault(key, []).append(value)
    return values


def test_there_are_thirteen_tasks_with_files_of_their_own() -> None:
    assert len(NAMES) == 13 and set(NAMES) == {name for name in tasks.names() if name.startswith("ruler-")}
    assert all(task.length == 8192 for task in tasks.parse_all(["ruler:length=8192"]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["agnostic", "aware"])
def test_right_answers_score_1_and_the_question_comes_after_compression(name: str, mode: str) -> None:
    task, items = made(name, mode=mode)
    for item in items:
        (turn,) = item.turns
        question = text(turn.tokens).splitlines()
        assert task.grade(item, turn, f" {', '.join(turn.expected)}.") == 1.0
        assert task.grade(item, turn, "") == task.grade(item, turn, " It does not say.") == 0.0
        assert all(expected in text(item.prompt) for expected in turn.expected)
        asked = text(item.prompt).rstrip().endswith("?") or text(item.prompt).endswith("nothing.")
        assert asked is (mode == "aware"), question
        assert len(item.prompt) <= 3000 and not any(expected in text(turn.tokens) for expected in turn.expected)


@pytest.mark.parametrize(
    ("name", "keys", "values", "asked", "key", "value"),
    [
        ("ruler-niah-single-1", 1, 1, 1, WORD, NUMBER),
        ("ruler-niah-single-2", 1, 1, 1, WORD, NUMBER),
        ("ruler-niah-single-3", 1, 1, 1, WORD, UUID),
        ("ruler-niah-multikey-1", 4, 1, 1, WORD, NUMBER),
        ("ruler-niah-multikey-2", None, 1, 1, WORD, NUMBER),
        ("ruler-niah-multikey-3", None, 1, 1, UUID, UUID),
        ("ruler-niah-multivalue", 1, 4, 1, WORD, NUMBER),
        ("ruler-niah-multiquery", 4, 1, 4, WORD, NUMBER),
    ],
)
def test_needles_are_as_many_and_of_the_kind_that_ruler_has(
    name: str, keys: int | None, values: int, asked: int, key: str, value: str
) -> None:
    _, items = made(name)
    for item in items:
        told = hidden(item)
        assert len(told) == keys or (keys is None and len(told) > 15)
        assert all(re.fullmatch(key, one) and len(own) == values for one, own in told.items())
        assert all(re.fullmatch(value, one) for own in told.values() for one in own)
        (turn,) = item.turns
        named = [one for one in told if re.search(rf"for [^?]*{re.escape(one)}[^?]*\?", text(turn.tokens))]
        assert len(named) == asked
        assert sorted(turn.expected) == sorted(value for one in named for value in told[one])


def test_the_haystack_of_single_1_is_noise_and_of_single_2_prose() -> None:
    _, (noise,) = made("ruler-niah-single-1", 1)
    _, (prose,) = made("ruler-niah-single-2", 1)
    assert text(noise.prompt).count(_needles.NOISE) > 20 and _needles.NOISE not in text(prose.prompt)


def test_needles_stand_anywhere() -> None:
    places = []
    for item in made("ruler-niah-single-1", 40)[1]:
        lines = text(item.prompt).splitlines()[1:]
        places.append(next(place for place, line in enumerate(lines) if HIDDEN.match(line)) / len(lines))
    assert min(places) < 0.15 and max(places) > 0.85


def test_several_questions_ask_for_different_keys_of_one_context() -> None:
    _, items = made("ruler-niah-multikey-2", questions=4)
    for item in items:
        told = hidden(item)
        keys = [re.findall(r"for (\S+) in the text above\?", text(turn.tokens))[-1] for turn in item.turns]
        assert len(set(keys)) == 4 and [told[key] for key in keys] == [list(turn.expected) for turn in item.turns]
        assert all(turn.tokens[0] == item.turns[0].tokens[0] for turn in item.turns), "one prefill serves all"


def test_a_share_of_the_values_is_a_share_of_the_score() -> None:
    task, (item,) = made("ruler-niah-multivalue", 1)
    (turn,) = item.turns
    assert task.grade(item, turn, " ".join(turn.expected[:3])) == 0.75


@pytest.mark.parametrize("name", ["ruler-cwe", "ruler-fwe"])
def test_naming_all_words_of_the_text_does_not_pay(name: str) -> None:
    """Those that are not asked for first, as a list without a thought may have them."""
    task, (item,) = made(name, 1)
    (turn,) = item.turns
    words = re.findall(r"[a-z]{4,}", re.split(r"(?:in mind|of them)\.\n", text(item.prompt))[-1])
    others = [word for word in dict.fromkeys(words) if word not in turn.expected]
    assert len(others) >= len(turn.expected)
    assert task.grade(item, turn, ", ".join([*others, *turn.expected])) == 0.0
    assert task.grade(item, turn, ", ".join([*turn.expected, *others])) == 1.0


@pytest.mark.parametrize("example", [True, False])
def test_a_chain_hands_its_value_on(example: bool) -> None:
    _, items = made("ruler-vt", example=example)
    for item in items:
        (turn,) = item.turns
        asked = text(item.prompt).split("The text below assigns")[-1]
        value = re.findall(r"the value (\d{5})", text(turn.tokens))[0]
        holders = re.findall(rf"VAR (\w+) = {value}$", asked, re.MULTILINE)
        for name, other in re.findall(r"VAR (\w+) = VAR (\w+)", asked):
            if other in holders:
                holders.append(name)
        assert holders == list(turn.expected) and len(holders) == 5 and all(len(name) == 5 for name in holders)
        assert (text(item.prompt).count("The text below assigns") == 2) is example


@pytest.mark.parametrize(("length", "common", "other"), [(3000, 6, 1), (9000, 30, 3)])
def test_common_words_come_as_often_as_rulers(length: int, common: int, other: int) -> None:
    _, items = made("ruler-cwe", 2, length)
    for item in items:
        listed = text(item.prompt).split("keep those in mind.\n")[-1]
        often = Counter(re.findall(r"\d+\. (\w+)", listed))
        (turn,) = item.turns
        assert {word for word, count in often.items() if count == common} == set(turn.expected)
        assert len(turn.expected) == 10 and set(often.values()) == {common, other}


def test_coded_words_follow_the_zeta_distribution() -> None:
    _, items = made("ruler-fwe", 2)
    for item in items:
        listed = text(item.prompt).split("keep track of them.\n")[-1].split()
        often = Counter(listed)
        (turn,) = item.turns
        ranked = often.most_common()
        assert ranked[0][0] == "..." and [word for word, _ in ranked[1:4]] == list(turn.expected)
        assert all(abs(ranked[0][1] / rank**2 - count) <= 1.5 for rank, (_, count) in enumerate(ranked[:6], 1))


def test_made_documents_hold_the_answer_once_told_and_two_lead_to_it() -> None:
    _, singles = made("ruler-qa-made-1", 6)
    for item in singles:
        (turn,) = item.turns
        (name,) = re.findall(r"[A-Z]\w+ [A-Z]\w+", text(turn.tokens))
        (document,) = [part for part in text(item.prompt).split("Document ") if name in part]
        assert turn.expected[0] in document
    _, pairs = made("ruler-qa-made-2", 6)
    for item in pairs:
        (turn,) = item.turns
        (name,) = re.findall(r"[A-Z]\w+ [A-Z]\w+", text(turn.tokens))
        parts = text(item.prompt).split("Document ")
        (person,) = [part for part in parts if name in part]
        town = re.findall(r"was born in (\w+) in", person)[0]
        assert turn.expected[0] not in person
        assert [turn.expected[0] in part for part in parts if f"{town} is a town" in part] == [True]


@pytest.mark.parametrize("name", NAMES)
def test_a_context_that_is_too_short_is_refused(name: str) -> None:
    with pytest.raises(PromptError, match="use a larger --length"):
        made(name, 1, 60)
