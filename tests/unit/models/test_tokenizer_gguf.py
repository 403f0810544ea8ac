"""Tokenizers from GGUF metadata: the cut of words, merges, settings, and errors that name the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.gguf_files import byte_tokens

from thrifty.errors import CheckpointError
from thrifty.models.gguf.metadata import Metadata
from thrifty.models.tokens.gguf import derive_merges, from_metadata
from thrifty.models.tokens.pieces import bytes_of
from thrifty.models.tokens.pre import CUTS
from thrifty.models.tokens.tokenizer import Tokenizer


def metadata(**changes: Any) -> Metadata:
    """A byte-level tokenizer; a change of None removes a field. Names: `pre`, `tokens` … without the prefix."""
    tokens = byte_tokens()
    fields = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "token_type": np.array([3 if token.startswith("<|") else 1 for token in tokens]),
        "merges": ["h e", "l l", "he ll"],
        "bos_token_id": 260,
        "eos_token_id": 261,
    }
    fields.update(changes)
    named = {f"tokenizer.ggml.{name}": value for name, value in fields.items() if value is not None}
    return Metadata(Path("m.gguf"), {"general.architecture": "llama", **named})


def tokenizer(**changes: Any) -> Tokenizer:
    found = from_metadata(metadata(**changes))
    return Tokenizer(found.definition, found.settings)


def words(pre: str, text: str) -> list[str]:
    """How text is cut, with the byte symbols turned back to text."""
    if CUTS[pre].compose:
        import unicodedata

        text = unicodedata.normalize("NFC", text)
    pieces = CUTS[pre].pre_tokenizer().pre_tokenize_str(text)
    return [bytes_of(piece).decode() for piece, _ in pieces]


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("gpt-2", "It's 123  ok", ["It", "'s", " 123", " ", " ok"]),
        ("smollm", "It's 123  ok", ["It", "'s", " ", "1", "2", "3", " ", " ok"]),
        ("llama-bpe", "IT'S 12345 a\n\nb", ["IT", "'S", " ", "123", "45", " a", "\n\n", "b"]),
        ("qwen2", "x=123\n\n y", ["x", "=", "1", "2", "3", "\n\n", " y"]),
        ("tekken", "HelloWorld 12/\n", ["Hello", "World", " ", "1", "2", "/\n"]),
        ("gpt-4o", "don'T helloWorld 1234", ["don'T", " hello", "World", " ", "123", "4"]),
        ("qwen2", "cafe\u0301", ["café"]),
    ],
)
def test_text_is_cut_as_each_family_does(pre: str, text: str, expected: list[str]) -> None:
    assert words(pre, text) == expected


def test_merges_and_special_tokens() -> None:
    found = tokenizer()
    hell = byte_tokens().index("hell")
    ids = found.encode("hello<|im_end|>")
    assert ids[0] == hell and ids[-1] == 261
    assert found.decode(ids) == "hello" and found.decode(ids, skip_special=False) == "hello<|im_end|>"
    assert found.eos_ids == (261, 259) and found.bos_id == 260


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": "bert"}, "'tokenizer.ggml.model' is 'bert', which is not supported. Known: gpt2, llama."),
        (
            {"pre": "lama-bpe"},
            "'tokenizer.ggml.pre' is 'lama-bpe', a pre-tokenizer that is not supported. Did you mean 'llama-bpe'?",
        ),
        ({"tokens": None}, "the metadata field 'tokenizer.ggml.tokens' is missing"),
        ({"tokens": []}, "'tokenizer.ggml.tokens' is empty"),
        ({"merges": None}, "the metadata field 'tokenizer.ggml.merges' is missing"),
        ({"merges": ["h e", "h"]}, "'tokenizer.ggml.merges'[1] is 'h'; both of its halves"),
        ({"merges": ["h zz"]}, "'tokenizer.ggml.merges'[0] is 'h zz'"),
        ({"token_type": np.zeros(3)}, "'tokenizer.ggml.token_type' has 3 values; 262 are needed"),
        ({"eos_token_id": 9999}, "'tokenizer.ggml.eos_token_id' is 9999; the vocabulary has 262 tokens"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(CheckpointError) as error:
        tokenizer(**changes)
    assert expected in str(error.value)


SPM = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", "ab", "\u2581ab", "aba"]


def spm(**changes: Any) -> Tokenizer:
    count = len(SPM)
    scores = np.zeros(count, dtype=np.float32)
    scores[262:] = [-1, -2, -3]
    kinds = np.array([2, 3, 3, *[6] * 256, *[1] * (count - 259)])
    fields = {"model": "llama", "pre": None, "merges": None, "tokens": SPM, "scores": scores, "token_type": kinds}
    return tokenizer(**{**fields, "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, **changes})


def test_sentencepiece_merges_bytes_and_space_prefix() -> None:
    found = spm()
    assert found.encode("ab é") == [1, SPM.index("\u2581ab"), SPM.index("\u2581"), 3 + 0xC3, 3 + 0xA9]
    assert found.decode(found.encode("ab é\nab")) == "ab é\nab"
    plain = spm(add_space_prefix=False)
    assert plain.encode("ab", add_bos=False) == [SPM.index("ab")]
    assert plain.decode([SPM.index("\u2581ab")]) == " ab"


def test_runs_of_spaces_are_merged_and_not_found_by_their_spelling() -> None:
    """Gemma lists them as user-defined tokens of plain spaces; the text "▁" itself is cut as any other."""
    tokens = [*SPM, "  ", "   "]
    scores = np.zeros(len(tokens), dtype=np.float32)
    scores[262:] = [-1, -2, -3, -4, -5]
    kinds = np.array([2, 3, 3, *[6] * 256, *[1] * 6, 4, 4])
    found = spm(tokens=tokens, scores=scores, token_type=kinds, add_space_prefix=False)
    run = len(tokens) - 1
    assert found.encode("a   a", add_bos=False) == [SPM.index("a"), run, SPM.index("a")]
    assert found.encode(" \u2581\u2581", add_bos=False) == [run]


def test_merges_follow_the_scores() -> None:
    merges = derive_merges(["a", "b", "ab", "ba", "aba"], [1] * 5, np.array([0.0, 0, -2, -1, -3]))
    assert merges == [("b", "a"), ("a", "b"), ("ab", "a"), ("a", "ba")]
    assert derive_merges(["a", "b", "ab"], [1, 1, 3], np.zeros(3)) == []


def test_scores_must_be_finite() -> None:
    with pytest.raises(CheckpointError, match=r"'tokenizer.ggml.scores' holds values that are not finite"):
        spm(scores=np.full(len(SPM), np.nan, dtype=np.float32))


def test_the_template_for_tools_has_a_field_of_its_own() -> None:
    fields = metadata()
    templates = {"tokenizer.chat_template": "D", "tokenizer.chat_template.tool_use": "T"}
    read = from_metadata(Metadata(fields.path, {**fields, **templates})).settings
    assert (read.chat_template, read.tool_template) == ("D", "T")
    assert from_metadata(fields).settings.tool_template is None
