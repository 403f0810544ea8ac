"""Reading calls from the text of an answer as it comes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from thrifty.models.tokens.pieces import overlap


@dataclass(frozen=True)
class Piece:
    """What a text adds to an answer: content; or to call number `call` its name, or a part of its arguments."""

    content: str = ""
    call: int = -1
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True)
class Form:
    """How calls are written. opening: what begins them in a text. head: from there to a call's arguments, with the
    group `name` (as a JSON string). more: from the arguments to the next head, None where each call has its opening.
    end: from the arguments to the text behind.
    """

    opening: str
    head: re.Pattern[str]
    end: re.Pattern[str]
    more: re.Pattern[str] | None = None


def head_of(arguments: str, before: str = "") -> re.Pattern[str]:
    """A head such as `{"name": "f", "arguments": `. before: a regular expression of what precedes it."""
    name = r'(?P<name>"(?:[^"\\]|\\.)*")'
    return re.compile(rf'{before}\s*\{{\s*"name"\s*:\s*{name}\s*,\s*"{arguments}"\s*:\s*(?=\{{)')


class JsonObject:
    """Finds the end of a JSON object that comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._quoted = self._escaped = False

    def push(self, text: str) -> int | None:
        """How many characters of the text belong to the object where it ends in it, else None: all."""
        for place, character in enumerate(text):
            if self._quoted:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._quoted = False
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return place + 1
        return None


class CallParser:
    """Text in, pieces out. Nothing of a call comes out as content, and no text is lost: what turns out to be no whole
    head at the end is content.
    """

    def __init__(self, form: Form) -> None:
        self.form = form
        self.calls = 0
        self._held = ""
        self._step = self._text
        self._object = JsonObject()

    def push(self, text: str) -> list[Piece]:
        """What becomes certain with a text."""
        self._held += text
        pieces: list[Piece] = []
        while self._step(pieces):
            pass
        return pieces

    @property
    def unfinished(self) -> bool:
        """Whether the arguments of a call are not whole."""
        return self._step == self._arguments

    def flush(self) -> list[Piece]:
        """What was held back, at the end."""
        held, self._held = self._held, ""
        whole = self._step == self._text or self._step == self._head
        return [Piece(held)] if whole and held and not (self.calls and held.isspace()) else []

    def _text(self, pieces: list[Piece]) -> bool:
        """Content up to an opening. Whitespace in front of one is no content."""
        before, opening, _ = self._held.partition(self.form.opening)
        sure = before.rstrip()
        if not opening:
            sure = before[: len(before) - overlap(before, self.form.opening)].rstrip()
        if sure:
            pieces.append(Piece(sure))
        self._held = self._held[len(sure) :]
        if opening:
            self._step = self._head
        return bool(opening)

    def _head(self, pieces: list[Piece]) -> bool:
        """The opening and the head of a call, whole."""
        start = self._held.find(self.form.opening) + len(self.form.opening) if self._opened else 0
        match = self.form.head.match(self._held, start)
        if match is None:
            return False
        pieces.append(Piece(call=self.calls, name=json.loads(match["name"])))
        self._held = self._held[match.end() :]
        self.calls += 1
        self._object, self._step = JsonObject(), self._arguments
        return True

    @property
    def _opened(self) -> bool:
        """Whether an opening is at the front of what is held."""
        return self._held.lstrip().startswith(self.form.opening)

    def _arguments(self, pieces: list[Piece]) -> bool:
        end = self._object.push(self._held)
        arguments, self._held = self._held[:end], "" if end is None else self._held[end:]
        if arguments:
            pieces.append(Piece(call=self.calls - 1, arguments=arguments))
        if end is None:
            return False
        self._step = self._tail
        return True

    def _tail(self, pieces: list[Piece]) -> bool:
        """What closes a call."""
        for pattern, step in ((self.form.more, self._head), (self.form.end, self._text)):
            match = None if pattern is None else pattern.match(self._held)
            if match is not None:
                self._held, self._step = self._held[match.end() :], step
                return True
        return False
