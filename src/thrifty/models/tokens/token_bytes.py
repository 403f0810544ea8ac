"""The bytes that each token of a vocabulary stands for, in the middle of a text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from thrifty.errors import CheckpointError
from thrifty.models.tokens.pieces import bytes_of

if TYPE_CHECKING:
    from thrifty.models.tokens.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACES = frozenset(("Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"))
"""Steps of decoders that write a space for a sign, and bytes for their names."""


def token_bytes(tokenizer: Tokenizer, decoder: Mapping[str, Any] | None, size: int) -> list[bytes]:
    """The bytes of ids 0 to `size` − 1; added tokens are what they are called, rows that are no token are empty.

    decoder: the JSON of the tokenizer's decoder. Raises CheckpointError for a decoder whose tokens have no bytes of
    their own (WordPiece, CTC).
    """
    steps = list(_flat(decoder or {"type": "none"}))
    kinds = {step["type"] for step in steps}
    if kinds == {"ByteLevel"}:
        return [_spelt(tokenizer, token, {}, True) for token in range(size)]
    if kinds <= SPACES:
        return [_spelt(tokenizer, token, _signs(steps), False) for token in range(size)]
    raise CheckpointError(
        f"tokenizer.json: the decoder '{', '.join(sorted(kinds)):.80}' gives tokens no bytes of their own, so no "
        "grammar can constrain them; leave the grammar out, or use a model with another tokenizer"
    )


def _spelt(tokenizer: Tokenizer, token: int, signs: Mapping[str, str], byte_level: bool) -> bytes:
    """The bytes of one token. signs: what is written for a sign of the vocabulary."""
    text = tokenizer.backend.id_to_token(tokenizer.same_text.get(token, token))
    if text is None:
        return b""
    if token in tokenizer.added_ids:
        return str(text).encode()
    if byte_level:
        return bytes_of(text)
    if match := _BYTE.fullmatch(text):
        return bytes((int(match[1], 16),))
    for sign, written in signs.items():
        text = text.replace(sign, written)
    return str(text).encode()


def _signs(steps: list[Mapping[str, Any]]) -> dict[str, str]:
    signs = {}
    for step in steps:
        if step["type"] == "Metaspace":
            signs[step["replacement"]] = " "
        elif step["type"] == "Replace" and "String" in step["pattern"]:
            signs[step["pattern"]["String"]] = step["content"]
    return signs


def _flat(decoder: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if decoder["type"] != "Sequence":
        yield decoder
        return
    for step in decoder["decoders"]:
        yield from _flat(step)
