"""Real documents that every installation has, and questions about them that have one checkable answer.

Essays: the package's prose. The reference: the chapters on the language that `help()` shows. The manual: the
documentation of the standard library's functions. The last two are those of the Python that runs.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from thrifty.evaluation.halves import Half, half_of
from thrifty.evaluation.tasks._haystack import sentences
from thrifty.evaluation.tasks._library import Function, functions

Kind = Literal["essays", "reference", "manual"]

SPEAKER = re.compile(r"([A-Z]{4,}) ([a-z]+ed|said|spoke|gave|saw|took) ([^.?!:;]{30,160})\.")
WORD = re.compile(r"(?<![\w-])[a-z]{7,}(?![\w-])")
SHORTEST, LONGEST = 60, 700  # characters of a paragraph of the reference
BEGINNING, LONGEST_CUT = 25, 500  # characters of a sentence that tell which it is, and of all of it
LEAD = "Answer:"
WHO = "According to the text, who {verb} {what}?"
GOES = 'How does the sentence of the text go that begins with "{begins}"?'
SAID = 'The sentence goes: "{head}'
NEXT = 'Which word comes right after "{head}" in the text?'
NAME = 'Which function has this description in the text: "{summary}"'
DEFAULT = "According to the text, what is the default of the parameter {parameter} of {name}?"


@dataclass(frozen=True)
class Fact:
    """A question with its answer. kind: facts of one kind have answers of one kind. once: what a context must hold
    exactly once for the question to have one answer. lead: the words that begin the answer. choice: the question where
    answers are given to choose from, the same where it is empty.
    """

    kind: str
    question: str
    answer: str
    once: str
    lead: str = LEAD
    choice: str = ""


@dataclass(frozen=True)
class Passage:
    """A piece of a document, and what can be asked about it."""

    text: str
    facts: tuple[Fact, ...]


@functools.cache
def passages(kind: Kind, half: Half) -> tuple[Passage, ...]:
    """A document, piece by piece, with what a half may ask about it. Raises TaskError where the standard library's
    sources are not installed.
    """
    if kind == "manual":
        return tuple(Passage(_entry(function), _of(half, _of_function(function))) for function in functions())
    texts = sentences(half) if kind == "essays" else _paragraphs()
    facts = ((text, (*_speakers(text), *_cuts(text))) for text in texts)
    return tuple(Passage(text, own if kind == "essays" else _of(half, own)) for text, own in facts)


def _of(half: Half, facts: Sequence[Fact]) -> tuple[Fact, ...]:
    """Those that a half asks."""
    return tuple(fact for fact in facts if half_of(fact.question) == half)


def told_once(context: str, facts: Sequence[Fact], chance: random.Random, count: int) -> list[Fact]:
    """Up to `count` of the facts in random order that a context tells exactly once, none with the answer of another."""
    folded = _folded(context)
    chosen: dict[str, Fact] = {}
    for fact in chance.sample(facts, len(facts)):
        if len(chosen) == count:
            break
        if fact.answer.lower() not in chosen and folded.count(_folded(fact.once)) == 1:
            chosen[fact.answer.lower()] = fact
    return list(chosen.values())


def _folded(text: str) -> str:
    """A text on one line in small letters."""
    return " ".join(text.split()).lower()


def _paragraphs() -> list[str]:
    """The language reference's, of all chapters in alphabetical order."""
    from pydoc_data.topics import topics

    texts = [" ".join(part.split()) for topic in sorted(topics) for part in re.split(r"\n\s*\n", topics[topic])]
    return [text for text in dict.fromkeys(texts) if SHORTEST <= len(text) <= LONGEST and text[0].isalpha()]


def _entry(function: Function) -> str:
    """A function as a manual shows it."""
    return f"{function.header}\n{function.documentation}"


def _of_function(function: Function) -> tuple[Fact, ...]:
    own = function.name.rpartition(".")[2]
    named = Fact("name", NAME.format(summary=function.summary), own, " ".join(function.summary.split()))
    defaults = (
        Fact("default", DEFAULT.format(parameter=parameter, name=function.name), value, function.name + "(")
        for parameter, value in function.defaults
    )
    return (named, *defaults)


def _speakers(text: str) -> list[Fact]:
    """Who did what, where a sentence names somebody in capitals."""
    sentence = SPEAKER.fullmatch(text)
    if sentence is None:
        return []
    name, verb, what = sentence.groups()
    return [Fact("who", WHO.format(verb=verb, what=what), name, what)]


def _cuts(text: str) -> list[Fact]:
    """How a sentence goes on, at its longest word behind the first few; none where it has no long one there."""
    words = [match for match in WORD.finditer(text) if match.start() >= 2 * BEGINNING]
    if not words or len(text) > LONGEST_CUT:
        return []
    word = max(words, key=lambda match: len(match[0]))
    head = text[: word.start()].rstrip()
    begins = text[: text.index(" ", BEGINNING)]
    return [Fact("word", GOES.format(begins=begins), word[0], head, SAID.format(head=head), NEXT.format(head=head))]
