"""When an answer ends: end-of-sequence ids, stop ids, stop strings across token boundaries, and the
length.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from typing import Protocol

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.models.tokens.pieces import overlap


class TextDecoder(Protocol):
    """Incremental detokenisation: never half a UTF-8 character."""

    def push(self, token: int) -> str:
        """The text that became certain with this token."""
        ...

    def hidden(self, token: int) -> str:
        """What a control token is called, whose text `push` leaves out; nothing for other tokens."""
        ...

    def flush(self) -> str:
        """What is left at the end; the stream is done after it."""
        ...


class NoText:
    """The text of a model without a tokenizer: none."""

    def push(self, token: int) -> str:
        """Nothing."""
        return ""

    def hidden(self, token: int) -> str:
        """Nothing."""
        return ""

    def flush(self) -> str:
        """Nothing."""
        return ""


class StopStrings:
    """Withholds text for as long as it may be the start of a stop string."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._held = ""
        self._shown: list[str] = []  # of each held character, what may be shown of it

    def push(self, text: str, hidden: bool = False) -> tuple[str, bool]:
        """(text that may be shown, whether a stop string was found). Text after the first stop string is
        dropped. hidden: this text may be (a part of) a stop string, but is never shown.
        """
        shown = [""] * len(text) if hidden else list(text)
        if not self._strings:
            return "".join(shown), False
        held, shown = self._held + text, self._shown + shown
        places = [place for place in (held.find(string) for string in self._strings) if place >= 0]
        stop = min(places) if places else len(held) - max(overlap(held, string) for string in self._strings)
        self._held, self._shown = ("", []) if places else (held[stop:], shown[stop:])
        return "".join(shown[:stop]), bool(places)

    def flush(self) -> str:
        """The text that was held back, at the end of the answer."""
        text = "".join(self._shown)
        self._held, self._shown = "", []
        return text


class Stopper:
    """Decides after each token whether the answer ends, and which text is certain.

    told: where a stop string ended the answer, how many of its tokens lie wholly before that.
    """

    def __init__(
        self,
        parameters: SamplingParameters,
        stream: TextDecoder,
        end_ids: Iterable[int],
        maximum_tokens: int,
        forced: int = 0,
    ) -> None:
        """end_ids: the model's end-of-sequence ids (all count unless ignore_eos). maximum_tokens: at
        least 1. forced: so many first tokens are given, and end nothing but by the length.
        """
        self.ends = frozenset(parameters.stop_token_ids)
        if not parameters.ignore_eos:
            self.ends |= frozenset(end_ids)
        self.looks_for_text = bool(parameters.stop)
        self._stream = stream
        self._strings = StopStrings(parameters.stop)
        self.maximum_tokens = maximum_tokens
        self.forced = forced
        self.count = 0
        self.told: int | None = None
        self._ends: list[int] = []  # of each token, where its text ends
        self._shown = 0

    def push(self, token: int) -> tuple[str, str | None]:
        """(certain text, finish reason or None). A token that ends the answer adds no text of its own."""
        self.count += 1
        if self.count <= self.forced:
            text = self._stream.push(token)
            self._note(text)
            self._shown += len(text)
            return (text + self._stream.flush(), "length") if self.count >= self.maximum_tokens else (text, None)
        if token in self.ends:
            return self._finish(self._stream.hidden(token))[0], "stop"
        text, stopped = self._stream.push(token), False
        if self.looks_for_text:
            self._note(text)
            text, stopped = self._strings.push(text)
            if not stopped:
                more, stopped = self._strings.push(self._stream.hidden(token), hidden=True)
                text += more
            self._shown += len(text)
        if stopped:
            self.told = self._tokens_before(self._shown)
            return text, "stop"
        if self.count >= self.maximum_tokens:
            tail, stopped = self._finish()
            return text + tail, "stop" if stopped else "length"
        return text, None

    def flush(self) -> str:
        """All text that was held back, up to a stop string in it."""
        return self._finish()[0]

    def _note(self, text: str) -> None:
        """A token's text, before stop strings are looked for."""
        if self.looks_for_text:
            self._ends.append(len(text) + (self._ends[-1] if self._ends else 0))

    def _tokens_before(self, characters: int) -> int:
        """How many tokens make up so much of the text, without one that goes beyond it."""
        if not characters:
            return 0
        place = bisect.bisect_left(self._ends, characters)
        return place + 1 if self._ends[place] == characters else place

    def _finish(self, hidden: str = "") -> tuple[str, bool]:
        """(all that is left to show, whether a stop string was found). hidden: what the last token is called."""
        text, stopped = self._strings.push(self._stream.flush())
        if not stopped:
            more, stopped = self._strings.push(hidden, hidden=True)
            text += more
        return text if stopped else text + self._strings.flush(), stopped
