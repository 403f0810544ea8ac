"""Identifiers that belong to identifiers: nothing about them can be guessed or left out."""

from __future__ import annotations

import random
from collections.abc import Iterator

from thrifty.evaluation.halves import Half
from thrifty.evaluation.tasks._sessions import Question
from thrifty.evaluation.tasks.ruler._words import drawn, keys

ENTRY = '"{key}": "{value}",'
ASK = 'What is the value of the key "{key}" in the JSON object above?'
LEAD = 'The value of the key is "'
STOP = '"'


def pairs(chance: random.Random, half: Half) -> Iterator[tuple[str, str]]:
    """Keys of a half and values without end, no key twice."""
    return ((key, drawn(chance, "uuid")) for key in keys(chance, "uuid", half))


def entry(key: str, value: str) -> str:
    """A pair as a line of an object."""
    return ENTRY.format(key=key, value=value)


def question(key: str, value: str) -> Question:
    """For the value of a key."""
    return Question(ASK.format(key=key), LEAD, (value,), value + STOP)
