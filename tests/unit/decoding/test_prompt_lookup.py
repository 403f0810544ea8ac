"""Prompt lookup against the repository's loop, written out."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.decoding.sampling import Sampler
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.decoding.strategies.prompt_lookup import LookupDrafter


@dataclass
class Text:
    """A sequence that grows."""

    tokens: list[int]
    sampler: Sampler = field(default_factory=lambda: Sampler(SamplingParameters(), 10))


def slow(tokens: list[int], ngram: int, length: int) -> tuple[int, ...]:
    """`find_candidate_pred_tokens`, with plain lists."""
    for size in range(ngram, 0, -1):
        pattern = tokens[-size:]
        for start in range(len(tokens) - size):
            if tokens[start : start + size] == pattern and len(pattern) == size:
                return tuple(tokens[start + size : start + size + length])
    return ()


@settings(max_examples=200)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=60),
    st.lists(st.integers(0, 3), max_size=40),
    st.integers(1, 5),
    st.integers(1, 12),
)
def test_the_draft_is_what_followed_the_first_match(
    prompt: list[int], more: list[int], ngram: int, length: int
) -> None:
    drafter, text = LookupDrafter(ngram, length), Text(list(prompt))
    for token in [None, *more]:
        text.tokens += [] if token is None else [token]
        draft = drafter.propose(text)
        assert draft.parents is None and draft.tokens == slow(text.tokens, ngram, length)
        assert draft == drafter.propose(text), "it may be asked again"
