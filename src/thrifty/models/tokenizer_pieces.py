"""From the spelling of a token in the vocabulary to its bytes, by the decoder that a tokenizer.json states."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from thrifty.errors import CheckpointError

SPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class PieceDecoder:
    """`byte_level`: every character of a token stands for a byte (GPT-2). Otherwise SentencePiece: U+2581 is a space,
    and <0x41> is a byte where `byte_fallback` is set. `strips_first_space`: text begins without the space that encoding
    put in front.
    """

    byte_level: bool
    byte_fallback: bool = False
    strips_first_space: bool = False

    def to_bytes(self, piece: str) -> bytes:
        """The bytes of one token's spelling."""
        if self.byte_level:
            table = byte_of_character()
            if all(character in table for character in piece):
                return bytes(table[character] for character in piece)
            return piece.encode("utf-8", "replace")
        if self.byte_fallback and (match := _BYTE.fullmatch(piece)):
            return bytes((int(match[1], 16),))
        return piece.replace(SPACE, " ").encode("utf-8", "replace")


@cache
def byte_of_character() -> Mapping[str, int]:
    """GPT-2's spelling of bytes: printable ones are themselves, the others the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(0x100 + index): byte for index, byte in enumerate(others)},
    }


def piece_decoder(definition: Mapping[str, Any]) -> PieceDecoder:
    """The decoder that the JSON of a tokenizer.json states.

    Raises CheckpointError, naming it, where it is of another kind: its text would be wrong.
    """
    steps = list(_steps(definition.get("decoder")))
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return PieceDecoder(byte_level=True)
    known = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
    unknown = [kind for kind in kinds if kind not in known]
    if unknown or not any(_makes_spaces(step) for step in steps):
        raise CheckpointError(
            f"tokenizer.json: the decoder {unknown[0] if unknown else kinds!r} is not supported; "
            "ByteLevel, or Replace or Metaspace with ByteFallback, are"
        )
    metaspace = next((step for step in steps if step["type"] == "Metaspace"), None)
    strips = any(step["type"] == "Strip" and step.get("start") for step in steps)
    if metaspace is not None:
        strips = strips or metaspace.get("prepend_scheme", "always") != "never"
    return PieceDecoder(byte_level=False, byte_fallback="ByteFallback" in kinds, strips_first_space=strips)


def _steps(decoder: object) -> Iterator[Mapping[str, Any]]:
    if not isinstance(decoder, Mapping):
        raise CheckpointError("tokenizer.json: 'decoder' is missing")
    if decoder.get("type") == "Sequence" and isinstance(decoder.get("decoders"), list):
        for step in decoder["decoders"]:
            yield from _steps(step)
    else:
        yield decoder


def _makes_spaces(step: Mapping[str, Any]) -> bool:
    if step["type"] == "Metaspace":
        return step.get("replacement", SPACE) == SPACE
    return step["type"] == "Replace" and step.get("pattern") == {"String": SPACE} and step.get("content") == " "
