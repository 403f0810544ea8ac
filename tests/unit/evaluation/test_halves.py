"""Tuning apart from judging: no item, context, key or question of one half is in the other."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tests.tiny import ByteTokenizer

from thrifty.evaluation import tasks
from thrifty.evaluation.halves import half_of
from thrifty.evaluation.tasks._haystack import numbers, sentences
from thrifty.evaluation.tasks.task import Item
from thrifty.evaluation.text import held_out, prose

MADE = [name for name in tasks.names() if not tasks.load(name).package]
OVER_PROSE = ("recall", "recall-many", "multi-turn", "multi-request", "tracing", "choice", "alpaca-pairs")
PASSAGES = ("perplexity", "kl", "continuation")
LONGER = ("ruler-", "scbench-", "long-")
KEYED = ("recall", "recall-many", "multi-turn", "multi-request", "tracing")


def text(tokens: Any) -> str:
    return ByteTokenizer().decode(tokens)


def both(name: str, count: int = 12, seeds: int = 2, **options: Any) -> tuple[list[Item], list[Item]]:
    """Items of the tuning and of the judged half."""
    if name in ("arithmetic", "reasoning"):
        pytest.importorskip("reasoning_gym")
    made = []
    for half in ("tuning", "judged"):
        length = 2400 if name.startswith(LONGER) else 900
        task = tasks.load(name, **{"length": length, "half": half, **options})
        made.append([item for seed in range(seeds) for item in task.items(ByteTokenizer(), count, seed)])
    return made[0], made[1]


@pytest.mark.parametrize("name", MADE)
def test_no_item_is_in_both_halves(name: str) -> None:
    tuning, judged = both(name, 6, 1)
    assert not {(item.prompt, item.turns) for item in tuning} & {(item.prompt, item.turns) for item in judged}
    assert not {item.identity for item in tuning} & {item.identity for item in judged}
    assert tasks.load(name, half="tuning").label == f"{name}:half=tuning" and tasks.load(name).label == name


@pytest.mark.parametrize("name", OVER_PROSE)
def test_contexts_share_no_sentence(name: str) -> None:
    tuning, judged = (" ".join(text(item.prompt) for item in items) for items in both(name))
    own = {half: [one for one in sentences(half) if len(one) > 80] for half in ("tuning", "judged")}
    assert any(sentence in tuning for sentence in own["tuning"]) and any(one in judged for one in own["judged"])
    assert not [sentence for sentence in own["judged"] if sentence in tuning]
    assert not [sentence for sentence in own["tuning"] if sentence in judged]


@pytest.mark.parametrize("name", PASSAGES)
def test_passages_are_of_their_own_half_of_the_text(name: str) -> None:
    for half, items in zip(("tuning", "judged"), both(name, 8, 1), strict=True):
        whole = prose(half)  # type: ignore[arg-type]
        twice = whole + whole
        assert all(text(item.prompt) + text(item.turns[0].tokens) in twice for item in items)


@pytest.mark.parametrize("name", KEYED)
def test_numbers_to_be_found_are_of_one_half(name: str) -> None:
    for rest, items in zip((0, 1), both(name, 6, 1), strict=True):
        found = [int(number) for item in items for number in re.findall(r"number of \w+ is (\d+)", text(item.prompt))]
        assert found and all(number % 2 == rest for number in found)


def test_questions_of_a_generator_are_asked_in_one_half_and_shown_in_no_other() -> None:
    pytest.importorskip("reasoning_gym")
    for half, items in zip(("tuning", "judged"), both("arithmetic"), strict=True):
        for item in items:
            assert half_of(item.material["question"]) == half
            shown = re.findall(r"(Calculate[^\n]*)\n", text(item.prompt))
            assert shown and all(half_of(question) == half for question in shown)


def test_the_text_is_cut_between_paragraphs_and_whole_together() -> None:
    tuning, judged = prose("tuning"), prose("judged")
    assert prose() == tuning + "\n\n" + judged
    assert 0.24 * len(prose()) < len(tuning) < 0.27 * len(prose())
    assert held_out(ByteTokenizer(), 50, half="judged") == list(judged.encode()[:50])
    assert held_out(ByteTokenizer(), 50) == list(prose().encode()[:50])


@pytest.mark.parametrize("digits", [2, 4])
def test_the_numbers_of_both_halves_are_all_there_are(digits: int) -> None:
    tuning, judged = set(numbers("tuning", digits)), set(numbers("judged", digits))
    assert not tuning & judged and tuning | judged == set(range(10 ** (digits - 1), 10**digits))
    assert len(tuning) == len(judged) >= 40


def test_a_name_belongs_to_a_half_for_good() -> None:
    known = {"HumanEval/0": "tuning", "HumanEval/1": "judged", "0001": "tuning", "0002": "judged"}
    assert {name: half_of(name) for name in known} == known
    drawn = [half_of(str(number)) for number in range(2000)]
    assert 0.45 < drawn.count("tuning") / 2000 < 0.55
