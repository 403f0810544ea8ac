"""Recall of one key: a number told somewhere in a text, asked for at its end."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from thrifty.decoding.sampling import SamplingParameters
from thrifty.engine.request import Request
from thrifty.evaluation.text import prose

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine
    from thrifty.evaluation.forcing import Tables

CITIES = (
    "Lisbon",
    "Oslo",
    "Prague",
    "Vienna",
    "Dublin",
    "Athens",
    "Warsaw",
    "Madrid",
    "Berlin",
    "Cairo",
    "Delhi",
    "Lima",
)
ANSWER_TOKENS = 24


class Tokenizer(Protocol):
    """The part of a tokenizer that is used here."""

    @property
    def has_chat_template(self) -> bool: ...

    def encode(self, text: str, add_bos: bool | None = None) -> list[int]: ...

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]: ...


@dataclass(frozen=True)
class Needle:
    """One question: the prompt's tokens and the digits that a right answer holds."""

    prompt: tuple[int, ...]
    answer: str


def needles(tokenizer: Tokenizer, tokens: int, count: int, seed: int = 0) -> list[Needle]:
    """`count` questions of about `tokens` prompt tokens, their keys at even depths of the text."""
    draw = random.Random(seed)
    sentences = prose().split(". ")
    made = []
    for index in range(count):
        city, code = CITIES[index % len(CITIES)], str(draw.randrange(10000, 99999))
        told = f"The secret code of {city} is {code}"
        asked = f"\n\nWhat is the secret code of {city}? Answer with the number alone."
        start = draw.randrange(len(sentences) // 2)
        made.append(Needle(_fitted(tokenizer, sentences[start:], told, asked, (index + 0.5) / count, tokens), code))
    return made


def recalled(engine: Engine, questions: Sequence[Needle], cache: Tables) -> list[bool]:
    """Whether each greedy answer under a cache recipe holds the digits."""
    found = []
    for one in questions:
        sampling = SamplingParameters(max_tokens=ANSWER_TOKENS)
        handle = engine.submit(Request(prompt=one.prompt, sampling=sampling, cache=cache, share_prefix=False))
        found.append(one.answer in handle.result().text)
    return found


def _fitted(
    tokenizer: Tokenizer, sentences: Sequence[str], told: str, asked: str, depth: float, tokens: int
) -> tuple[int, ...]:
    """The longest prompt of whole sentences within `tokens`."""
    low, high = 0, len(sentences)
    while high - low > 1:
        middle = (low + high) // 2
        if len(_prompt(tokenizer, sentences[:middle], told, asked, depth)) <= tokens:
            low = middle
        else:
            high = middle
    return tuple(_prompt(tokenizer, sentences[:low], told, asked, depth))


def _prompt(tokenizer: Tokenizer, sentences: Sequence[str], told: str, asked: str, depth: float) -> list[int]:
    place = round(len(sentences) * depth)
    text = ". ".join([*sentences[:place], told, *sentences[place:]]) + "." + asked
    if tokenizer.has_chat_template:
        return tokenizer.encode_chat([{"role": "user", "content": text}])
    return tokenizer.encode(text)
