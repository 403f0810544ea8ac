"""The bytes of tokens: joined, they are what the tokenizer writes."""

from __future__ import annotations

import json

import pytest
from tests.small_tokenizers import byte_level, sentence_piece
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from thrifty.errors import CheckpointError
from thrifty.models.tokens.settings import TokenizerSettings
from thrifty.models.tokens.tokenizer import Tokenizer

TEXT = "Paris, the a  é ∑ 😀!"


def tokenizer_of(backend: Backend) -> Tokenizer:
    size = backend.get_vocab_size(with_added_tokens=True)
    return Tokenizer(backend.to_str(), TokenizerSettings(vocabulary_size=size + 3, eos_ids=(0,)))


@pytest.mark.parametrize("kind", ["bytes", "prepend", "none", "first"])
def test_joined_they_are_the_text(kind: str) -> None:
    backend = byte_level(special=["<|end|>"], added=["<call>"]) if kind == "bytes" else sentence_piece(kind)
    tokenizer = tokenizer_of(backend)
    ids = tokenizer.encode(TEXT + "<call>")
    spelt = tokenizer.token_bytes(tokenizer.vocabulary_size)
    written = b"".join(spelt[token] for token in ids).decode()
    assert written.removeprefix(" ") == TEXT + "<call>"


def test_added_tokens_are_what_they_are_called_and_missing_rows_are_empty() -> None:
    backend = byte_level(special=["<|end|>"], added=["é!"])
    tokenizer = tokenizer_of(backend)
    size = backend.get_vocab_size(with_added_tokens=True)
    spelt = tokenizer.token_bytes(size + 3)
    assert spelt[backend.token_to_id("<|end|>")] == b"<|end|>"
    assert spelt[backend.token_to_id("é!")] == "é!".encode()
    assert spelt[size:] == [b"", b"", b""]


def test_a_decoder_without_bytes_is_refused() -> None:
    backend = Backend(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    assert json.loads(backend.to_str())["decoder"]["type"] == "WordPiece"
    with pytest.raises(CheckpointError, match="WordPiece"):
        tokenizer_of(backend).token_bytes(2)
