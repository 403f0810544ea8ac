"""What comes out of the engine: events, and the answer that they add up to."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from thrifty.decoding.sampling import TokenLogprob
from thrifty.errors import ThriftyError

if TYPE_CHECKING:
    from thrifty.arrays import Floats

Listener = Callable[["Event | None"], None]
"""Takes the events of a request in their order, and None after the last one.

It is called by the thread that steps, when the step's results are committed for every request. It may submit, fork and
cancel; a step of its own is refused. One that raises is not called again: its request ends with that error.
"""


@dataclass(frozen=True)
class Event:
    """One step of one sample of one request.

    token: the new token id, None where the event only ends the sample. text: what became certain with it
    (held-back text of a possible stop string or half a character comes later). finish_reason: None while
    it goes on, else "stop", "length", "cancelled" or "error" (then `error` says why). logits:
    [vocabulary] fp32 where the request asked. taps: layer → fp32 [hidden], the state after it of the row that chose the
    token, where the request asked.
    """

    request: str
    sample: int
    token: int | None = None
    text: str = ""
    logprob: TokenLogprob | None = None
    finish_reason: str | None = None
    error: Exception | None = None
    logits: Floats | None = None
    taps: Mapping[int, Floats] | None = None


@dataclass
class Usage:
    """What a request used. Seconds are wall time: queued until admitted, prefill until the first token,
    then decode. kept_tokens: of the prompt's tokens those that prompt programs let be read, or slots a head that they
    kept; all of them without one. kv_bytes: the most that its caches held of their own, and the hidden state of its
    prompt, over all samples; pages that it shares with others do not count. It is known when the request is over.
    """

    prompt_tokens: int
    cached_tokens: int = 0
    generated_tokens: int = 0
    queued_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    preemptions: int = 0
    kv_bytes: int = 0
    kept_tokens: int = -1

    def __post_init__(self) -> None:
        if self.kept_tokens < 0:
            self.kept_tokens = self.prompt_tokens

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens read a second (those of a prefix hit do not count, those that a program left out do)."""
        return (self.prompt_tokens - self.cached_tokens) / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens after the first a second, over all samples."""
        return max(0, self.generated_tokens - 1) / self.decode_seconds if self.decode_seconds else 0.0


@dataclass
class Sample:
    """One finished or growing answer. token_ids include the token that ended it; text does not."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)


class Answer:
    """The engine's record of one request: its samples so far, and the events that nobody has taken yet.

    The engine records; a handle, or the listener, takes. The engine holds no handle, so that it can tell when the last
    one is dropped.
    """

    def __init__(self, identity: str, samples: int, prompt_tokens: int, listener: Listener | None = None) -> None:
        self.identity = identity
        self.samples = [Sample(index) for index in range(samples)]
        self.usage = Usage(prompt_tokens=prompt_tokens)
        self.error: Exception | None = None
        self.events: deque[Event] = deque()
        self.listened = listener is not None
        self._listener = listener
        self._submitted = self._admitted = self._first = time.perf_counter()

    @property
    def finished(self) -> bool:
        """True once every sample has a finish reason; events may still be waiting to be taken."""
        for sample in self.samples:  # noqa: SIM110  # every step asks: a loop takes less than a generator
            if sample.finish_reason is None:
                return False
        return True

    @property
    def waited_seconds(self) -> float:
        """Since it was submitted, where it is not admitted yet."""
        return time.perf_counter() - self._submitted

    def mark_admitted(self, cached_tokens: int) -> None:
        """Its prefill starts."""
        self._admitted = time.perf_counter()
        self.usage.cached_tokens = cached_tokens
        self.usage.queued_seconds = self._admitted - self._submitted

    def record(self, event: Event) -> None:
        """Add an event to its sample, and keep it to be taken."""
        sample = self.samples[event.sample]
        sample.text += event.text
        if event.token is not None:
            sample.token_ids.append(event.token)
            self._clock()
        if event.logprob is not None:
            sample.logprobs.append(event.logprob)
        if event.finish_reason is not None:
            sample.finish_reason = event.finish_reason
        if event.error is not None:
            self.error = event.error
        self.events.append(event)

    def fail(self, error: Exception) -> None:
        """End with an error what has no end yet, beside its events."""
        self.error = self.error or error
        for sample in self.samples:
            sample.finish_reason = sample.finish_reason or "error"

    def tell(self) -> None:
        """Pass what was recorded to the listener, where there is one, and None after the last event. Raises what the
        listener raises; it is forgotten then.
        """
        try:
            while self._listener is not None and self.events:
                self._listener(self.events.popleft())
            listener = self._listener
            if listener is not None and self.finished:
                self._listener = None
                listener(None)
        except BaseException:
            self._listener = None
            raise

    def _clock(self) -> None:
        """Account for one new token."""
        now = time.perf_counter()
        if self.usage.generated_tokens == 0:
            self._first = now
            self.usage.prefill_seconds = now - self._admitted
        self.usage.generated_tokens += 1
        self.usage.decode_seconds = now - self._first


class Answered:
    """What the holder of a request reads of it. answer: the engine's own record."""

    answer: Answer

    @property
    def identity(self) -> str:
        """The request's id, which its events carry."""
        return self.answer.identity

    @property
    def samples(self) -> list[Sample]:
        """The answers so far."""
        return self.answer.samples

    @property
    def usage(self) -> Usage:
        """What the request used so far: tokens, those that a shared prefix gave, and seconds."""
        return self.answer.usage

    @property
    def error(self) -> Exception | None:
        """What ended it with finish reason "error"."""
        return self.answer.error

    @property
    def finished(self) -> bool:
        """True once every sample has a finish reason; events may still be waiting to be read."""
        return self.answer.finished


def own_error(error: BaseException) -> Exception:
    """An error as its request tells it. What is no Exception (KeyboardInterrupt, SystemExit) is raised to who stepped;
    to read about it must not interrupt the reader as well.
    """
    if isinstance(error, Exception):
        return error
    told = ThriftyError(f"the request was ended by {type(error).__name__} in the middle of a step; submit it again")
    told.__cause__ = error
    return told
