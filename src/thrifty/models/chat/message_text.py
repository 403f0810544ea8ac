"""Text that knows which of its characters came out of a message.

A chat template puts messages between control tokens. What it writes goes through operators, methods and filters; a
`MessageText` keeps its marks through those that templates use, and where one cannot say which characters are whose, all
of its result counts as a message's. So what bears no mark was written by the template.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, SupportsIndex

Spans = tuple[tuple[int, int], ...]
MAX_REPLACED = 1 << 12  # replacements that are followed one by one; behind that all counts as a message's
PAIR = 120  # bytes of a pair of numbers in a tuple

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"  # no characters of any text


class MessageText(str):
    """A string with `spans`: (start, end) of the characters that came from messages, rising and apart.

    Its methods return plain strings where nothing of a message is left.
    """

    __slots__ = ("spans",)
    spans: Spans

    def __new__(cls, text: str, spans: Spans | None = None) -> MessageText:
        """spans: all of the text where None."""
        made = super().__new__(cls, text)
        made.spans = (((0, len(text)),) if text else ()) if spans is None else spans
        return made

    def __str__(self) -> str:
        return self

    def __sizeof__(self) -> int:
        return super().__sizeof__() + PAIR * (len(self.spans) + 1)

    def __add__(self, other: Any) -> str:
        return joined((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: Any) -> str:
        return joined((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, times: SupportsIndex) -> str:
        return MessageText(str.__mul__(self, times))

    __rmul__ = __mul__

    def __iter__(self) -> Iterator[str]:
        return (self._part(place, place + 1) for place in range(len(self)))

    def __getitem__(self, key: Any) -> str:
        if not isinstance(key, slice):
            place = range(len(self))[key]
            return self._part(place, place + 1)
        start, stop, step = key.indices(len(self))
        return self._part(start, max(start, stop)) if step == 1 else MessageText(str.__getitem__(self, key))

    def strip(self, *characters: Any) -> str:
        return self._stripped(str.strip(self, *characters), *characters)

    def lstrip(self, *characters: Any) -> str:
        return self._stripped(str.lstrip(self, *characters), *characters)

    def rstrip(self, *characters: Any) -> str:
        return self._part(0, len(str.rstrip(self, *characters)))

    def removeprefix(self, prefix: str) -> str:
        return self._part(len(self) - len(str.removeprefix(self, prefix)), len(self))

    def removesuffix(self, suffix: str) -> str:
        return self._part(0, len(str.removesuffix(self, suffix)))

    def partition(self, separator: str) -> tuple[str, str, str]:
        before, between, after = self._located(str.partition(self, separator), 0)
        return before, between, after

    def rpartition(self, separator: str) -> tuple[str, str, str]:
        before, between, after = self._located(str.rpartition(self, separator), 0)
        return before, between, after

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._located(str.split(self, sep, maxsplit), None if sep is None else len(sep))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._located(str.rsplit(self, sep, maxsplit), None if sep is None else len(sep))

    def splitlines(self, keepends: bool = False) -> list[str]:
        return self._located(str.splitlines(self, keepends), None)

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> str:
        if not old or self.count(old) > MAX_REPLACED:
            return MessageText(str.replace(self, old, new, count))
        return joined(_between(new, self.split(old, count)))

    def join(self, texts: Iterable[str]) -> str:
        return joined(_between(self, list(texts)))

    def upper(self) -> str:
        return self._changed(str.upper(self))

    def lower(self) -> str:
        return self._changed(str.lower(self))

    def title(self) -> str:
        return self._changed(str.title(self))

    def capitalize(self) -> str:
        return self._changed(str.capitalize(self))

    def swapcase(self) -> str:
        return self._changed(str.swapcase(self))

    def casefold(self) -> str:
        return self._changed(str.casefold(self))

    def _part(self, start: int, end: int) -> str:
        text = str.__getitem__(self, slice(start, end))
        if text and self.spans and self.spans[0] == (0, len(self)):
            return MessageText(text)
        spans = tuple(
            (max(first, start) - start, min(last, end) - start)
            for first, last in self.spans
            if first < end and last > start
        )
        return MessageText(text, spans) if spans and text else text

    def _stripped(self, text: str, *characters: Any) -> str:
        start = len(self) - len(str.lstrip(self, *characters))
        return self._part(start, start + len(text))

    def _located(self, pieces: Sequence[str], gap: int | None) -> list[str]:
        """Pieces of this text in order, with their marks. gap: characters between two, None: to be searched."""
        position, parts = 0, []
        for piece in pieces:
            start = str.find(self, piece, position) if gap is None else position
            parts.append(self._part(start, start + len(piece)))
            position = start + len(piece) + (gap or 0)
        return parts

    def _changed(self, text: str) -> str:
        return MessageText(text, self.spans if len(text) == len(self) else None)


def joined(parts: Iterable[str]) -> str:
    """The parts in a row, with their marks; a plain string where there are none."""
    texts = list(parts)
    spans: list[tuple[int, int]] = []
    offset = 0
    for text in texts:
        if isinstance(text, MessageText):
            spans += ((first + offset, last + offset) for first, last in text.spans)
        offset += len(text)
    whole = "".join(texts)
    return MessageText(whole, tuple(spans)) if spans else str.__str__(whole)


def parts_of(text: str) -> list[tuple[str, bool]]:
    """The text in parts, in order: plain strings, each with whether it came out of a message."""
    plain, spans = str.__str__(text), text.spans if isinstance(text, MessageText) else ()
    edges = [0, *(edge for span in spans for edge in span), len(plain)]
    parts = [(plain[start:end], place % 2 == 1) for place, (start, end) in enumerate(pairwise(edges))]
    return [(part, quoted) for part, quoted in parts if part]


def marked(value: Any) -> Any:
    """A copy of JSON-like data in which all text, keys included, counts as a message's."""
    if isinstance(value, str):
        return value if isinstance(value, MessageText) else MessageText(value)
    if isinstance(value, Mapping):
        return {marked(key): marked(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [marked(item) for item in value]
    return value


def has_marks(value: Any) -> bool:
    """Whether a value holds text of a message."""
    if isinstance(value, str):
        return isinstance(value, MessageText) and bool(value.spans)
    if isinstance(value, Mapping):
        return any(has_marks(item) for pair in value.items() for item in pair)
    return isinstance(value, (list, tuple, set, frozenset)) and any(has_marks(item) for item in value)


def written(value: Any) -> str:
    """A value as text; that of a container that holds text of a message is all a message's."""
    if isinstance(value, str):
        return value
    return MessageText(str(value)) if has_marks(value) else str(value)


def formatted(write: Callable[..., str], values: Sequence[Any], named: Mapping[str, Any], exact: bool) -> str:
    """`write(*values, **named)`, a formatting of values, with their marks. exact: each is written as it is."""
    held: list[str] = []

    def stand_in(value: Any) -> Any:
        if not isinstance(value, MessageText):
            return value
        held.append(value)
        return f"{_OPEN}{len(held) - 1}{_CLOSE}"

    if not has_marks([*values, *named.values()]):
        return write(*values, **named)
    if not exact or any(has_marks(value) and not isinstance(value, str) for value in (*values, *named.values())):
        return MessageText(write(*values, **named))
    text = write(*map(stand_in, values), **{name: stand_in(value) for name, value in named.items()})
    parts = re.split(f"{_OPEN}(\\d+){_CLOSE}", text)
    return joined(held[int(part)] if place % 2 else part for place, part in enumerate(parts))


def _between(separator: str, texts: Sequence[str]) -> Iterator[str]:
    for place, text in enumerate(texts):
        if place:
            yield separator
        yield text
