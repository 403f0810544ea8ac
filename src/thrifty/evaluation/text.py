"""The text that quality is measured on. It ships with the package, so a figure means the same everywhere."""

from __future__ import annotations

import importlib.resources
from typing import Protocol

from thrifty.errors import PromptError
from thrifty.evaluation.halves import Half

PARAGRAPH = "\n\n"
TUNING = 4  # one part of so many is for tuning, the rest for judging, which needs long contexts without repetition


class Encodes(Protocol):
    """The part of a tokenizer that is used here."""

    def encode(self, text: str, add_bos: bool | None = None) -> list[int]:
        """Token ids of a text."""


def prose(half: Half | None = None) -> str:
    """About 98 kB of English prose in the public domain; `texts/README.md` says which and why.

    half: the first quarter is for tuning, the rest for judging, cut between paragraphs; None: all of it.
    """
    text = (importlib.resources.files("thrifty.evaluation") / "texts" / "workshop.txt").read_text(encoding="utf-8")
    if half is None:
        return text
    cut = text.index(PARAGRAPH, len(text) // TUNING)
    return text[:cut] if half == "tuning" else text[cut + len(PARAGRAPH) :]


def held_out(tokenizer: Encodes, tokens: int, part: int = 0, half: Half | None = None) -> list[int]:
    """Token ids of `tokens` consecutive tokens of the prose, a beginning-of-sequence id first where the model
    has one.

    part: 0 starts at the beginning, every next one where a part of the same length ends. half: see `prose`. Text that
    runs out starts again from the beginning, which only very long contexts reach. Raises PromptError where `tokens` is
    not positive.
    """
    if tokens < 1 or part < 0:
        raise PromptError(f"a text of {tokens} tokens, part {part}, cannot be made; use at least 1 token and part 0")
    ids = tokenizer.encode(prose(half))
    if len(ids) < 2:
        raise PromptError("the tokenizer turns the evaluation text into fewer than 2 tokens")
    start_ids = ids[:1] if tokenizer.encode("") == ids[:1] else []
    body = ids[len(start_ids) :]
    start = part * tokens % len(body)
    while len(body) < start + tokens:
        body += body
    return (start_ids + body[start : start + tokens])[:tokens]
