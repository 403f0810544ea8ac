"""The one gate of all text that a checkpoint's files hold: what passes can be written in UTF-8 again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from thrifty.errors import CheckpointError

_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
Pairs = list[tuple[str, Any]]


def decode(raw: bytes, path: Path, field: str) -> str:
    """The text of some bytes of a file.

    Raises CheckpointError, naming file, field and byte, where they are not UTF-8.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: {field} is {_fault(raw, error)}; write it again in UTF-8") from error


def read_text(path: Path) -> str:
    """The text of a whole file. Raises CheckpointError where it cannot be read or is not UTF-8."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    return decode(raw, path, "the text")


def parse_json(raw: bytes, path: Path, pairs: Callable[[Pairs], Any] = dict) -> Any:
    """The value that JSON text states; `pairs` makes its tables.

    Raises CheckpointError, naming the file, where it is no JSON, and the field too where a text in it is not UTF-8 or
    half of a surrogate pair.
    """
    try:
        value = json.loads(raw.decode("utf-8", "surrogateescape"), object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {_reason(raw, error)}.") from error
    if raw.isascii() and not _ESCAPED_SURROGATE.search(raw):
        return value
    for field, text in _texts(value):
        _check(text, path, field)
    return value


def _fault(raw: bytes, error: UnicodeDecodeError) -> str:
    return f"not valid UTF-8: the byte 0x{raw[error.start]:02x} at place {error.start} ({error.reason})"


def _reason(raw: bytes, error: Exception) -> str:
    """Why some bytes are no JSON: text in another encoding says more than what the parser stumbled over."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as fault:
        return f"its text is {_fault(raw, fault)}"
    return str(error)


def _texts(value: object) -> Iterator[tuple[str, str]]:
    """Every text inside a value, with the way to it, such as "added_tokens[3].content"."""
    waiting: list[tuple[str, object]] = [("", value)]
    while waiting:
        field, inner = waiting.pop()
        if isinstance(inner, str):
            yield field, inner
        elif isinstance(inner, dict):
            yield from ((f"a name in {field or 'the file'}", name) for name in inner)
            waiting.extend((f"{field}.{name}" if field else name, item) for name, item in inner.items())
        elif isinstance(inner, list):
            waiting.extend((f"{field}[{index}]", item) for index, item in enumerate(inner))


def _check(text: str, path: Path, field: str) -> None:
    match = _SURROGATE.search(text)
    if match is None:
        return
    code = ord(match[0])
    # Bytes that are not UTF-8 were decoded to these; an escape of the same number is no text either.
    what = f"the byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"half of a surrogate pair, U+{code:04X}"
    shown = _SURROGATE.sub("\ufffd", field)[:120]
    raise CheckpointError(
        f"{path}: '{shown}' is not valid UTF-8: it holds {what} at place {match.start()}; write it again in UTF-8"
    )
