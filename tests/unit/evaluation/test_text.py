"""The evaluation text: there, plain, and cut where it says."""

from __future__ import annotations

import pytest

from thrifty.errors import PromptError
from thrifty.evaluation.text import held_out, prose


class Bytes:
    """A byte tokenizer, with or without a beginning-of-sequence id."""

    def __init__(self, start: int | None = None) -> None:
        self.start = start

    def encode(self, text: str, add_bos: bool | None = None) -> list[int]:
        ids = list(text.encode())
        return ids if self.start is None else [self.start, *ids]


def test_the_prose_is_long_plain_english() -> None:
    text = prose()
    assert len(text) > 90_000
    assert text.isascii()
    assert text.count(" the ") > 500


def test_a_part_starts_where_the_one_before_ends() -> None:
    text = prose().encode()
    assert bytes(held_out(Bytes(), 100)) == text[:100]
    assert bytes(held_out(Bytes(), 100, part=2)) == text[200:300]


def test_every_part_begins_with_the_start_id() -> None:
    assert held_out(Bytes(300), 10)[0] == 300
    tokens = held_out(Bytes(300), 10, part=1)
    assert tokens[0] == 300
    assert len(tokens) == 10
    assert 300 not in tokens[1:]


def test_text_that_runs_out_starts_again() -> None:
    text = prose().encode()
    found = held_out(Bytes(), len(text) + 5)
    assert bytes(found[-5:]) == text[:5]


def test_no_tokens_are_refused() -> None:
    with pytest.raises(PromptError, match="0 tokens"):
        held_out(Bytes(), 0)
