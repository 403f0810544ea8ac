"""Merges as lines: the same tokenizer, and nothing that lines cannot say."""

from __future__ import annotations

import json

import pytest
from tests.small_tokenizers import unigram
from tokenizers import Tokenizer, models

from thrifty.models.tokens.merges import in_lines


def definition(pieces: list[str], merges: list[tuple[str, str]]) -> str:
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    text: str = Tokenizer(models.BPE(vocabulary, merges)).to_str()
    return text


def test_it_is_the_same_tokenizer() -> None:
    pieces = ["h", "e", "l", "\n", "\n\n", "\u2028", "é", "😀", '"', '"\\', "\\", "he", "hel", "l😀", "\u2028é"]
    merges = [("h", "e"), ("he", "l"), ("\n", "\n"), ("l", "😀"), ("\u2028", "é"), ('"', "\\")]
    given = definition(pieces, merges)
    found = in_lines(given)
    assert json.loads(found)["model"]["merges"][:3] == ["h e", "he l", "\n \n"]
    assert Tokenizer.from_str(found).to_str() == Tokenizer.from_str(given).to_str() == given
    assert in_lines(found) == found


@pytest.mark.parametrize(
    "given",
    [
        definition(["a", " ", "a ", "b", "ab"], [("a", "b"), ("a", " ")]),
        definition(["#version", "b", "#versionb", "a", "ab"], [("a", "b"), ("#version", "b")]),
        definition(["a", "b"], []),
        unigram().to_str(),
        "[]",
        '{"model": null}',
        '{"model": {"type": "BPE", "merges": {"a": 1}}}',
        '{"model": {"type": "BPE", "merges": [["a", "b"], ["c"]]}}',
    ],
)
def test_what_lines_cannot_say_stays_as_it_is(given: str) -> None:
    assert in_lines(given) == given
