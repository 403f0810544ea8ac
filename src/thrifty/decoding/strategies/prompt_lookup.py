"""Prompt lookup: what followed the newest tokens earlier is the draft."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from thrifty.card import Card
from thrifty.decoding.draft import MOST_ROWS, Draft
from thrifty.decoding.services import Services
from thrifty.decoding.strategy import Continuation, DecodingStrategy, Drafter
from thrifty.registry import technique


@technique(
    stage="decoding",
    card=Card(
        title="Prompt Lookup Decoding",
        paper="github.com/apoorvumang/prompt-lookup-decoding",
        year=2023,
        mechanism="The newest tokens are looked up in prompt and answer; what followed them there first is verified "
        "as a draft in one forward pass.",
        claim="2x to 4x speed where the answer repeats its input (summaries, questions over a document, code edits), "
        "with no change of the output",
        limits=("drafts nothing where the answer repeats nothing", "one line of draft, not a tree"),
    ),
)
@dataclass(frozen=True, kw_only=True)
class PromptLookup(DecodingStrategy):
    """ngram: the most newest tokens that are looked up; fewer where they are not found. length: tokens of a draft."""

    ngram: Annotated[int, Field(ge=1, le=16)] = 3
    length: Annotated[int, Field(ge=1, le=MOST_ROWS - 1)] = 10

    @property
    def rows(self) -> int:
        """See DecodingStrategy."""
        return 1 + self.length

    def open(self, services: Services) -> Drafter:
        """See DecodingStrategy."""
        return LookupDrafter(self.ngram, self.length)


class LookupDrafter(Drafter):
    """Remembers the tokens of its sequence as an array."""

    def __init__(self, ngram: int, length: int) -> None:
        self._ngram = ngram
        self._length = length
        self._tokens = np.empty(0, np.int32)
        self._count = 0

    def propose(self, continuation: Continuation) -> Draft:
        """What followed the first occurrence of the longest n-gram that occurs before (the repository's
        `find_candidate_pred_tokens`); none where no n-gram does."""
        tokens = self._remember(continuation)
        for size in range(min(self._ngram, len(tokens) - 1), 0, -1):
            pattern, starts = tokens[-size:], len(tokens) - size
            matches = np.ones(starts, np.bool_)
            for place in range(size):
                matches &= tokens[place : place + starts] == pattern[place]
            first = int(matches.argmax())
            if matches[first]:
                return Draft(tuple(tokens[first + size : first + size + self._length].tolist()))
        return Draft()

    def _remember(self, continuation: Continuation) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        """All tokens of the sequence, int32; room doubles."""
        tokens, held = continuation.tokens, self._count
        if len(tokens) > len(self._tokens):
            wider = np.empty(2 * len(tokens), np.int32)
            wider[:held] = self._tokens[:held]
            self._tokens = wider
        self._tokens[held : len(tokens)] = tokens[held:]
        self._count = len(tokens)
        return self._tokens[: self._count]
