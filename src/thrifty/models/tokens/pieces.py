"""From tokens to text, one by one, by the decoder that a tokenizer.json states.

The steps are those of the `tokenizers` library, made to go on from token to token. The text of all tokens is what the
library gives, but for added tokens, which are text (the library takes their characters for bytes), and for bytes that
are no UTF-8, which become one U+FFFD a sequence and spoil none of their neighbours.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from thrifty.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers.decoders import Decoder

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Piece(NamedTuple):
    """A token on its way to text. added: its characters are text, whatever they would stand for in the vocabulary."""

    text: str
    added: bool = False


class Step:
    """One step of a decoder, for one stream."""

    def push(self, piece: Piece) -> list[Piece]:
        """What is certain after this piece."""
        raise NotImplementedError

    def finish(self) -> list[Piece]:
        """What was held back, at the end of the stream."""
        return []


Maker = Callable[[], Step]


class PieceDecoder:
    """All steps, for one stream."""

    def __init__(self, makers: Sequence[Maker]) -> None:
        self._steps = [make() for make in makers]
        only = self._steps[0] if len(self._steps) == 1 else None
        self._bytes = only if isinstance(only, Bytes) else None  # the usual decoder, which needs no lists of pieces

    def push(self, text: str, added: bool) -> str:
        """The text that is certain after a token with this spelling."""
        if self._bytes is not None:
            return self._bytes.text_of(text, added)
        pieces = [Piece(text, added)]
        for step in self._steps:
            pieces = [out for piece in pieces for out in step.push(piece)]
        return "".join(piece.text for piece in pieces)

    def finish(self) -> str:
        """The text that was held back. Ends the stream."""
        pieces: list[Piece] = []
        for step in self._steps:
            pieces = [out for piece in pieces for out in step.push(piece)] + step.finish()
        return "".join(piece.text for piece in pieces)


class Bytes(Step):
    """Bytes become characters as soon as these are whole. of: the bytes that a spelling is, None where it is text."""

    def __init__(self, of: Callable[[str], bytes | None]) -> None:
        self._of = of
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def text_of(self, spelling: str, added: bool) -> str:
        """The text of what `push` gives."""
        data = None if added else self._of(spelling)
        return self._utf8.decode(b"", final=True) + spelling if data is None else self._utf8.decode(data)

    def push(self, piece: Piece) -> list[Piece]:
        data = None if piece.added else self._of(piece.text)
        if data is None:
            return [*self.finish(), piece]
        text = self._utf8.decode(data)
        return [Piece(text)] if text else []

    def finish(self) -> list[Piece]:
        text = self._utf8.decode(b"", final=True)
        return [Piece(text)] if text else []


class Replace(Step):
    """Every occurrence of a string within a token by another."""

    def __init__(self, pattern: str, content: str) -> None:
        self._pattern, self._content = pattern, content

    def push(self, piece: Piece) -> list[Piece]:
        return [Piece(piece.text.replace(self._pattern, self._content), piece.added)]


class ReplaceInText(Step):
    """Every occurrence of a string by another, also across tokens."""

    def __init__(self, pattern: str, content: str) -> None:
        self._pattern, self._content = pattern, content
        self._held = ""

    def push(self, piece: Piece) -> list[Piece]:
        *whole, rest = (self._held + piece.text).split(self._pattern)
        keep = overlap(rest, self._pattern)
        self._held = rest[len(rest) - keep :]
        return [Piece("".join(part + self._content for part in whole) + rest[: len(rest) - keep])]

    def finish(self) -> list[Piece]:
        held, self._held = self._held, ""
        return [Piece(held)]


class Strip(Step):
    """Up to `start` of a character from the beginning of every token, and up to `stop` from its end."""

    def __init__(self, content: str, start: int, stop: int) -> None:
        self._content, self._start, self._stop = content, start, stop

    def push(self, piece: Piece) -> list[Piece]:
        text = piece.text[_leading(piece.text, self._content, self._start) :]
        return [Piece(text[: len(text) - _leading(text[::-1], self._content, self._stop)], piece.added)]


class StripText(Strip):
    """Likewise from the beginning and the end of the whole text."""

    def __init__(self, content: str, start: int, stop: int) -> None:
        super().__init__(content, start, stop)
        self._held = ""

    def push(self, piece: Piece) -> list[Piece]:
        text = self._held + piece.text
        if self._start:
            count = _leading(text, self._content, self._start)
            self._start = 0 if count < len(text) else self._start - count
            text = text[count:]
        keep = _leading(text[::-1], self._content, self._stop)
        self._held = text[len(text) - keep :]
        return [Piece(text[: len(text) - keep])]


class Indexed(Step):
    """Tokens of which the first is treated otherwise than the rest: by the library's own decoder."""

    def __init__(self, library: Decoder) -> None:
        self._library = library
        self._begun = False

    def push(self, piece: Piece) -> list[Piece]:
        if self._begun:
            return [Piece(self._library.decode(["x", piece.text])[1:], piece.added)]
        self._begun = True
        return [Piece(self._library.decode([piece.text]), piece.added)]


class Single(Step):
    """Every token on its own, by the library's own decoder. repeats: False leaves out what equals its predecessor."""

    def __init__(self, library: Decoder, repeats: bool = True) -> None:
        self._library, self._repeats = library, repeats
        self._last: str | None = None

    def push(self, piece: Piece) -> list[Piece]:
        repeated, self._last = piece.text == self._last, piece.text
        return [] if repeated and not self._repeats else [Piece(self._library.decode([piece.text]), piece.added)]


class WordEnds(Step):
    """A suffix that ends words becomes a space, and nothing in the last token."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._held: list[Piece] = []

    def push(self, piece: Piece) -> list[Piece]:
        ended, self._held = self._held, [piece]
        return [Piece(before.text.replace(self._suffix, " "), before.added) for before in ended]

    def finish(self) -> list[Piece]:
        ended, self._held = self._held, []
        return [Piece(last.text.replace(self._suffix, ""), last.added) for last in ended]


def makers(decoder: Mapping[str, Any] | None) -> list[Maker]:
    """What makes the steps of a stream. decoder: the JSON of a tokenizer.json's `decoder`, as the library writes it.

    Raises CheckpointError, naming the step, where it cannot go on from token to token: its text would be wrong.
    """
    if decoder is None:
        raise CheckpointError("tokenizer.json: 'decoder' is missing; save the tokenizer again with the model's own one")
    chain: list[Maker] = []
    whole = False
    for step in _flat(decoder):
        kind = step["type"]
        if kind != "Fuse":
            chain.append(_in_text(step, kind) if whole else _in_tokens(step, kind))
        whole = whole or kind in ("Fuse", "ByteLevel")
    return chain


def _flat(decoder: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if decoder["type"] != "Sequence":
        yield decoder
        return
    for step in decoder["decoders"]:
        yield from _flat(step)


def _in_tokens(step: Mapping[str, Any], kind: str) -> Maker:
    """A step that sees one token after another."""
    from tokenizers import Regex, decoders

    match kind:
        case "ByteLevel":
            return partial(Bytes, bytes_of)
        case "ByteFallback":
            return partial(Bytes, _byte)
        case "Replace" if (text := step["pattern"].get("String")) is not None:
            return partial(Replace, text, step["content"])
        case "Replace":
            return partial(Single, decoders.Replace(Regex(step["pattern"]["Regex"]), step["content"]))
        case "Strip":
            return partial(Strip, step["content"], step["start"], step["stop"])
        case "Metaspace":
            return partial(Indexed, decoders.Metaspace(step["replacement"], step["prepend_scheme"]))
        case "WordPiece":
            return partial(Indexed, decoders.WordPiece(step["prefix"], step["cleanup"]))
        case "BPEDecoder":
            return partial(WordEnds, step["suffix"])
        case "CTC":
            return partial(
                Single, decoders.CTC(step["pad_token"], step["word_delimiter_token"], step["cleanup"]), False
            )
    raise CheckpointError(f"tokenizer.json: the decoder '{kind:.80}' is not supported; use a model whose decoder is")


def _in_text(step: Mapping[str, Any], kind: str) -> Maker:
    """A step that sees all tokens as one text."""
    match kind:
        case "Replace" if text := step["pattern"].get("String"):
            return partial(ReplaceInText, text, step["content"])
        case "Strip":
            return partial(StripText, step["content"], step["start"], step["stop"])
        case "Metaspace":
            return partial(Replace, step["replacement"], " " if step["prepend_scheme"] == "never" else "")
    if kind == "Replace":
        kind = "Replace by a regular expression" if "Regex" in step["pattern"] else "Replace of nothing"
    raise CheckpointError(
        f"tokenizer.json: the decoder '{kind:.80}' is not supported behind 'Fuse' or 'ByteLevel', where it needs the "
        "whole answer; put it before them, or leave it out"
    )


def bytes_of(piece: str) -> bytes:
    """The bytes of a token's spelling in a byte-level vocabulary; of text that is no such spelling in UTF-8."""
    table = byte_of_character()
    try:
        return bytes([table[character] for character in piece])
    except KeyError:
        return piece.encode("utf-8", "replace")


def _byte(piece: str) -> bytes | None:
    match = _BYTE.fullmatch(piece)
    return None if match is None else bytes((int(match[1], 16),))


@cache
def byte_of_character() -> Mapping[str, int]:
    """GPT-2's spelling of bytes: printable ones are themselves, the others the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(0x100 + index): byte for index, byte in enumerate(others)},
    }


def overlap(text: str, string: str) -> int:
    """Length of the longest end of `text` that is a beginning of `string`, and not all of it."""
    for length in range(min(len(text), len(string) - 1), 0, -1):
        if text.endswith(string[:length]):
            return length
    return 0


def _leading(text: str, character: str, limit: int) -> int:
    """How many of its first characters, `limit` at most, are `character`."""
    count = 0
    while count < min(limit, len(text)) and text[count] == character:
        count += 1
    return count
