"""When an answer ends: end-of-sequence ids, stop ids, stop strings across token boundaries, and the
length.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from thrifty.decoding.sampling import SamplingParameters


class TextStream(Protocol):
    """Incremental detokenisation: never half a UTF-8 character."""

    def push(self, token: int) -> str:
        """The text that became certain with this token."""
        ...

    def flush(self) -> str:
        """What is left at the end; the stream is done after it."""
        ...


class StopStrings:
    """Withholds text for as long as it may be the start of a stop string."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that may be shown, whether a stop string was found). Text after the first stop string is
        dropped.
        """
        if not self._strings:
            return text, False
        held = self._held + text
        places = [place for place in (held.find(string) for string in self._strings) if place >= 0]
        if places:
            self._held = ""
            return held[: min(places)], True
        keep = max(_overlap(held, string) for string in self._strings)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], False

    def flush(self) -> str:
        """The text that was held back, at the end of the answer."""
        held, self._held = self._held, ""
        return held

    def fork(self) -> StopStrings:
        """A copy that goes on alone."""
        other = StopStrings(self._strings)
        other._held = self._held
        return other


class Stopper:
    """Decides after each token whether the answer ends, and which text is certain."""

    def __init__(
        self,
        parameters: SamplingParameters,
        stream: TextStream,
        end_ids: Iterable[int],
        maximum_tokens: int,
        forced: int = 0,
    ) -> None:
        """end_ids: the model's end-of-sequence ids (all count unless ignore_eos). maximum_tokens: at
        least 1. forced: so many first tokens are given, and end nothing but by the length.
        """
        self._ends = frozenset(parameters.stop_token_ids)
        if not parameters.ignore_eos:
            self._ends |= frozenset(end_ids)
        self._stream = stream
        self._strings = StopStrings(parameters.stop)
        self.maximum_tokens = maximum_tokens
        self.forced = forced
        self.count = 0

    def push(self, token: int) -> tuple[str, str | None]:
        """(certain text, finish reason or None). A token that ends the answer adds no text of its own."""
        self.count += 1
        if self.count <= self.forced:
            text = self._stream.push(token)
            return (text + self._stream.flush(), "length") if self.count >= self.maximum_tokens else (text, None)
        if token in self._ends:
            return self.flush(), "stop"
        text, stopped = self._strings.push(self._stream.push(token))
        if stopped:
            return text, "stop"
        if self.count >= self.maximum_tokens:
            tail, stopped = self._strings.push(self._stream.flush())
            return text + tail + ("" if stopped else self._strings.flush()), "stop" if stopped else "length"
        return text, None

    def flush(self) -> str:
        """All text that was held back, up to a stop string in it."""
        text, stopped = self._strings.push(self._stream.flush())
        return text if stopped else text + self._strings.flush()


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of `text` that is a beginning of `string`, and not all of it."""
    for length in range(min(len(text), len(string) - 1), 0, -1):
        if text.endswith(string[:length]):
            return length
    return 0
