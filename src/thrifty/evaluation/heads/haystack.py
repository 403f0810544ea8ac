"""The prose around a probe's needle: its own, so that what is probed is not what the tasks ask.

`mill.txt` was written for this; no task, claim or training set uses a sentence of it.
"""

from __future__ import annotations

import importlib.resources
import random
import re
from collections.abc import Sequence
from typing import Any

FILE = "mill.txt"


def prose() -> str:
    """About a thousand words of English."""
    return (importlib.resources.files("thrifty.evaluation.heads") / FILE).read_text(encoding="utf-8")


def sentences() -> list[str]:
    """The prose's sentences, in order."""
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+", prose()) if part.strip()]


class ProbeHaystack:
    """Prose of a wanted number of tokens. Building one counts the tokens of every sentence."""

    def __init__(self, tokenizer: Any) -> None:
        self.sentences: Sequence[str] = sentences()
        self._tokenizer = tokenizer
        self._sizes = [self.size(" " + sentence) for sentence in self.sentences]

    def size(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._tokenizer.encode(text, add_bos=False))

    def body(self, chance: random.Random, room: int) -> list[str]:
        """Consecutive sentences from a random place, at most `room` tokens; after the last one the first follows."""
        place, chosen = chance.randrange(len(self.sentences)), []
        while self._sizes[place] <= room:
            chosen.append(self.sentences[place])
            room -= self._sizes[place]
            place = (place + 1) % len(self.sentences)
        return chosen
