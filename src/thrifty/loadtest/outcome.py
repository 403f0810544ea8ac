"""What one request met: its times, its tokens, its text or its error."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from thrifty.loadtest.exchange import Reply

MOST_TOKENS = 1 << 40


@dataclass
class Outcome:
    """One request. Seconds; start: of the clock `time.perf_counter`, when it was sent.

    prompt_tokens, output_tokens: as the server counts them; where it does not, the words that were asked for, and the
    pieces of text that came. ttft: until the first piece of text. itl: between one piece of text and the next. latency:
    until the last byte. status: of HTTP, None where there was no answer. error: empty where all went well.
    """

    start: float
    prompt_tokens: int
    output_tokens: int = 0
    cached_tokens: int = 0
    ttft: float = 0.0
    itl: list[float] = field(default_factory=list)
    latency: float = 0.0
    text: str = ""
    status: int | None = None
    error: str = ""
    cancelled: bool = False

    @property
    def success(self) -> bool:
        """Whether the whole answer came."""
        return not self.error and not self.cancelled

    @property
    def rejected(self) -> bool:
        """Whether the server refused it for want of room."""
        return self.status == 429

    @property
    def tpot(self) -> float:
        """Mean seconds of the tokens after the first; 0 where there are none."""
        return (self.latency - self.ttft) / (self.output_tokens - 1) if self.output_tokens > 1 else 0.0

    def fill(self, reply: Reply) -> None:
        """Take in a whole streamed answer."""
        self.status = reply.status
        if reply.status != 200:
            self.error = f"HTTP {reply.status}: {_message(reply.body)}"
            return
        moments: list[float] = []
        ended = False
        for moment, data in events(reply):
            if data == "[DONE]":
                ended = True
                break
            try:
                self._take(json.loads(data), moment, moments)
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
                self.error = f"a chunk that is none of OpenAI's ({type(error).__name__}): {data[:200]}"
                return
            if self.error:
                return
        if not ended:
            self.error = "the stream ended without [DONE]"
        elif not moments:
            self.error = "the answer has no text"
        else:
            self.ttft = moments[0] - self.start
            self.itl = [after - before for before, after in itertools.pairwise(moments)]
            self.latency = max(moments[-1], reply.pieces[-1][0]) - self.start
            self.output_tokens = self.output_tokens or len(moments)

    def _take(self, chunk: dict[str, Any], moment: float, moments: list[float]) -> None:
        if chunk.get("error"):
            self.error = f"in the stream: {chunk['error'].get('message', chunk['error'])}"
            return
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta")
            text = choice.get("text") if delta is None else _text_of(delta)
            if text:
                self.text += text
                moments.append(moment)
        if usage := chunk.get("usage"):
            details = usage.get("prompt_tokens_details") or {}
            counts = (usage["prompt_tokens"], usage["completion_tokens"], details.get("cached_tokens") or 0)
            if not all(isinstance(count, int) and 0 <= count < MOST_TOKENS for count in counts):
                raise ValueError("usage counts tokens")
            self.prompt_tokens, self.output_tokens, self.cached_tokens = counts


def events(reply: Reply) -> Iterator[tuple[float, str]]:
    """The data of server-sent events, each with the time at which its last byte came. The last may lack the empty line
    behind it.
    """
    held = b""
    for place, (moment, piece) in enumerate(reply.pieces, 1):
        held += piece
        *whole, held = re.split(rb"\r?\n\r?\n", held)
        if place == len(reply.pieces) and held.endswith(b"\n"):
            whole.append(held)
        for event in whole:
            data = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
            if data:
                yield moment, b"\n".join(data).decode("utf-8", "replace")


def _text_of(delta: dict[str, Any]) -> str:
    """What a chunk adds to a message: text, thoughts, or the arguments of a call."""
    calls = "".join((call.get("function") or {}).get("arguments") or "" for call in delta.get("tool_calls") or ())
    return (delta.get("content") or "") + (delta.get("reasoning_content") or "") + calls


def _message(body: bytes) -> str:
    """What an error's body says."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return body[:200].decode("utf-8", "replace").strip()
