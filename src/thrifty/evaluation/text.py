"""The text that quality is measured on. It ships with the package, so a figure means the same everywhere."""

from __future__ import annotations

import importlib.resources
from typing import Protocol

from thrifty.errors import PromptError


class Encodes(Protocol):
    """The part of a tokenizer that is used here."""

    def encode(self, text: str, add_bos: bool | None = None) -> list[int]:
        """Token ids of a text."""


def prose() -> str:
    """About 98 kB of English prose in the public domain; `texts/README.md` says which and why."""
    return (importlib.resources.files("thrifty.evaluation") / "texts" / "workshop.txt").read_text(encoding="utf-8")


def held_out(tokenizer: Encodes, tokens: int, part: int = 0) -> list[int]:
    """Token ids of `tokens` consecutive tokens of the prose, a beginning-of-sequence id first where the model
    has one.

    part: 0 starts at the beginning, every next one where a part of the same length ends. Text that runs out
    starts again from the beginning, which only very long contexts reach. Raises PromptError where `tokens` is
    not positive.
    """
    if tokens < 1 or part < 0:
        raise PromptError(f"a text of {tokens} tokens, part {part}, cannot be made; use at least 1 token and part 0")
    ids = tokenizer.encode(prose())
    if len(ids) < 2:
        raise PromptError("the tokenizer turns the evaluation text into fewer than 2 tokens")
    start_ids = ids[:1] if tokenizer.encode("") == ids[:1] else []
    body = ids[len(start_ids) :]
    start = part * tokens % len(body)
    while len(body) < start + tokens:
        body += body
    return (start_ids + body[start : start + tokens])[:tokens]
