"""Probe questions as token ids, with the places of what is told."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thrifty.errors import PromptError
from thrifty.evaluation.forcing import MeasurementError
from thrifty.evaluation.heads.haystack import ProbeHaystack
from thrifty.evaluation.heads.needles import Told, needle
from thrifty.evaluation.heads.riddles import riddle
from thrifty.evaluation.tasks._framing import SEPARATOR, Frame

MAKERS: Mapping[str, Callable[[random.Random], Told]] = {"r": needle, "r2": riddle}


@dataclass(frozen=True)
class ProbeItem:
    """tokens: the prompt and the answer, whose `answer` tokens are the last. needle: positions of all that was told;
    correct: those of the right answer in it.
    """

    tokens: tuple[int, ...]
    answer: int
    needle: range
    correct: range


@dataclass(frozen=True)
class ProbeQuestion:
    """A prompt whose answer is not there yet. right, wrong: words of the two answers. lead: whether the prompt ends
    with how the answer begins, so that the right words alone can follow (`expected`, their tokens)."""

    prompt: tuple[int, ...]
    needle: range
    correct: range
    right: str
    wrong: str
    lead: bool
    expected: tuple[int, ...]

    def answered(self, tokens: Sequence[int]) -> ProbeItem:
        """The item with an answer of these tokens."""
        return ProbeItem((*self.prompt, *tokens), len(tokens), self.needle, self.correct)


class Pieces:
    """Token ids put together from texts, so that places are known."""

    def __init__(self, tokenizer: Any, start: Sequence[int] = ()) -> None:
        self.tokens = list(start)
        self._tokenizer = tokenizer

    def add(self, text: str) -> range:
        """Append a text; the positions of its tokens."""
        first = len(self.tokens)
        self.tokens += self._tokenizer.encode(text, add_bos=False)
        return range(first, len(self.tokens))


class ProbeItems:
    """Makes the questions of one model. Building it counts the tokens of every sentence of the prose."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._haystack = ProbeHaystack(tokenizer)
        self._frame = Frame.of(tokenizer)

    def make(self, kind: str, length: int, depth: float, chance: random.Random) -> ProbeQuestion:
        """One question of about `length` tokens with its needle at `depth`, 0 to 1.

        Raises PromptError where `length` does not hold it, MeasurementError where the model has no tokens for the
        answer's words.
        """
        told = MAKERS[kind](chance)
        self._check_words(told.answer)
        body = self._haystack.body(chance, self._room(length, told))
        place = round(depth * len(body))
        return self._question(told, body[:place], body[place:])

    def _room(self, length: int, told: Told) -> int:
        """Tokens that are left for prose."""
        size = self._haystack.size
        texts = (" ".join(("", *told.needle)), told.question, told.lead, " " + told.answer, self._frame.after)
        room = length - sum(size(text) for text in texts) - len(self._frame.before) - size(SEPARATOR)
        if room < 0:
            raise PromptError(
                f"a prompt of {length} tokens does not hold a question of the head probe; use at least {length - room}"
            )
        return room

    def _check_words(self, answer: str) -> None:
        read = self._tokenizer.decode(self._tokenizer.encode(" " + answer, add_bos=False))
        missing = [word for word in answer.split() if word not in read]
        if missing:
            raise MeasurementError(
                f"not testable with this model: its vocabulary has no {', '.join(missing)}, words of the head probe. "
                "Use a model whose tokenizer spells any word."
            )

    def _question(self, told: Told, before: list[str], after: list[str]) -> ProbeQuestion:
        pieces = Pieces(self._tokenizer, self._frame.before)
        pieces.add(" ".join(before))
        first, correct = len(pieces.tokens), range(0)
        for number, part in enumerate(told.needle):
            if number == told.correct:
                correct = self._place(pieces, " " + part, " " + told.answer)
            else:
                pieces.add(" " + part)
        needle = range(first, len(pieces.tokens))
        pieces.add("".join(" " + sentence for sentence in after) + SEPARATOR + told.question)
        pieces.add(self._frame.after + told.lead)
        expected = self._tokenizer.encode(" " + told.answer, add_bos=False)
        return ProbeQuestion(
            tuple(pieces.tokens), needle, correct, told.answer, told.wrong, bool(told.lead), tuple(expected)
        )

    @staticmethod
    def _place(pieces: Pieces, sentence: str, answer: str) -> range:
        """Append a sentence; the positions of the answer in it."""
        before, _, after = sentence.partition(answer)
        pieces.add(before)
        place = pieces.add(answer)
        pieces.add(after)
        return place
