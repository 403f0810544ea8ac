"""What goes into the engine and what comes out: requests, events, handles, results."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from thrifty.decoding.sampling import SamplingParameters, TokenLogprob
from thrifty.errors import PromptError

if TYPE_CHECKING:
    from torch import Tensor

    from thrifty.engine.engine import Engine

Listener = Callable[["Event | None"], None]
"""Takes the events of a request as they come, and None after the last one."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt to continue.

    prompt: token ids, at least one. cache: the recipe's cache tables (`[{"technique": "kivi", "bits":
    2}]`), None for the engine's own. decoding: likewise. samples: independent answers that share one
    prefill. forced: teacher forcing: the answer begins with these tokens, whatever the logits say; the
    events carry what the model thought of them, and none of them ends the answer. free: how many tokens
    the model may choose after them (`sampling.max_tokens` counts only where nothing is forced). logits:
    each event carries its fp32 logits. cache_bytes: the most that its caches, their statistics and the
    hidden state of its prompt may take in the ledger at any moment, None for no bound of its own; a
    capacity that the recipe leaves to the "budget" is the largest that fits it. salt: prefixes are shared
    only between equal salts. share_prefix: False keeps the prompt out of the prefix tree, both ways.
    """

    prompt: Sequence[int]
    sampling: SamplingParameters = field(default_factory=SamplingParameters)
    cache: Sequence[Mapping[str, Any]] | None = None
    decoding: Sequence[Mapping[str, Any]] | None = None
    samples: int = 1
    forced: Sequence[int] | None = None
    free: int = 0
    logits: bool = False
    cache_bytes: int | None = None
    salt: str = ""
    share_prefix: bool = True
    identity: str = field(default_factory=lambda: os.urandom(8).hex())

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", tuple(int(token) for token in self.prompt))
        if not self.prompt:
            raise PromptError("the prompt is empty; it needs at least 1 token")
        if not isinstance(self.samples, int) or self.samples < 1:
            raise PromptError(f"samples = {self.samples!r} is out of range; use 1 or more")
        if self.forced is not None:
            object.__setattr__(self, "forced", tuple(int(token) for token in self.forced))
            if not self.forced:
                raise PromptError("forced is empty; it needs at least 1 token, or None to sample")
        if self.cache_bytes is not None and (not isinstance(self.cache_bytes, int) or self.cache_bytes < 1):
            raise PromptError(f"cache_bytes = {self.cache_bytes!r} is out of range; use 1 byte or more, or None")
        if not isinstance(self.free, int) or self.free < 0:
            raise PromptError(f"free = {self.free!r} is out of range; use 0 or more")
        if self.free and self.forced is None:
            raise PromptError(f"free = {self.free} counts tokens after forced ones; none are forced: use max_tokens")


@dataclass(frozen=True)
class Event:
    """One step of one sample of one request.

    token: the new token id, None where the event only ends the sample. text: what became certain with it
    (held-back text of a possible stop string or half a character comes later). finish_reason: None while
    it goes on, else "stop", "length", "cancelled" or "error" (then `error` says why). logits:
    [vocabulary] fp32 where the request asked.
    """

    request: str
    sample: int
    token: int | None = None
    text: str = ""
    logprob: TokenLogprob | None = None
    finish_reason: str | None = None
    error: Exception | None = None
    logits: Tensor | None = None


@dataclass
class Usage:
    """What a request used. Seconds are wall time: queued until admitted, prefill until the first token,
    then decode.
    """

    prompt_tokens: int
    cached_tokens: int = 0
    generated_tokens: int = 0
    queued_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    preemptions: int = 0

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens computed a second (those of a prefix hit do not count)."""
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


@dataclass(frozen=True)
class Result:
    """A request's answer: its samples and what it used. The plain attributes are those of the first
    sample.
    """

    request: str
    samples: list[Sample]
    usage: Usage

    @property
    def text(self) -> str:
        """Text of the first sample."""
        return self.samples[0].text

    @property
    def token_ids(self) -> list[int]:
        """Token ids of the first sample."""
        return self.samples[0].token_ids

    @property
    def finish_reason(self) -> str | None:
        """Why the first sample ended."""
        return self.samples[0].finish_reason

    @property
    def logprobs(self) -> list[TokenLogprob]:
        """Log-probabilities of the first sample, empty where the request did not ask."""
        return self.samples[0].logprobs


class Handle:
    """A submitted request: stream it, wait for it, cancel it, fork it.

    Iterating drives the engine where no other thread does (`Engine.step`), so a script needs no loop of
    its own. Events arrive in order for each sample; those of several samples interleave. A handle is for
    one consumer.
    """

    def __init__(self, engine: Engine, request: Request, usage: Usage, listener: Listener | None = None) -> None:
        self.request = request
        self.samples = [Sample(index) for index in range(request.samples)]
        self.usage = usage
        self.error: Exception | None = None
        self.forks = 0
        self._submitted = self._admitted = self._first = time.perf_counter()
        self._engine = engine
        self._listener = listener
        self._events: deque[Event] = deque()

    @property
    def identity(self) -> str:
        """The request's id, which its events carry."""
        return self.request.identity

    @property
    def finished(self) -> bool:
        """True once every sample has a finish reason; events may still be waiting to be read."""
        return all(sample.finish_reason is not None for sample in self.samples)

    def __iter__(self) -> Iterator[Event]:
        """Events until every sample is finished. Raises the request's error after its last event."""
        while True:
            while self._events:
                yield self._events.popleft()
            if self.finished:
                break
            self._engine.drive(self)
        if self.error is not None:
            raise self.error

    def tokens(self, sample: int = 0) -> Iterator[int]:
        """The token ids of one sample as they come."""
        return (event.token for event in self if event.sample == sample and event.token is not None)

    def text(self, sample: int = 0) -> Iterator[str]:
        """The text of one sample as it becomes certain; empty pieces are left out."""
        return (event.text for event in self if event.sample == sample and event.text)

    def result(self) -> Result:
        """Wait for the end. Raises the request's error; a cancelled request returns what it had."""
        for _ in self:
            pass
        return Result(self.identity, self.samples, self.usage)

    def cancel(self) -> None:
        """End all samples now and free their memory. Without effect on a finished request."""
        self._engine.cancel(self)

    def fork(
        self,
        sampling: SamplingParameters | None = None,
        sample: int = 0,
        *,
        forced: Sequence[int] = (),
        free: int = 0,
    ) -> Handle:
        """A new request that continues a running sample from its present place, sharing its cache by
        reference.

        sampling: its own parameters (max_tokens counts from the fork), None for those of the sample with
        another random stream. forced, free: as of a `Request`, from the fork on; what the sample itself had still to be
        forced is forgotten. Raises PromptError where the sample is not decoding (not started, or
        finished).
        """
        return self._engine.fork(self, sample, sampling, forced, free)

    def mark_admitted(self, cached_tokens: int) -> None:
        """Called by the engine when its prefill starts."""
        self._admitted = time.perf_counter()
        self.usage.cached_tokens = cached_tokens
        self.usage.queued_seconds = self._admitted - self._submitted

    def deliver(self, event: Event) -> None:
        """Called by the engine: record the event, then queue it or pass it to the listener."""
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
        if self._listener is None:
            self._events.append(event)
            return
        self._listener(event)
        if self.finished:
            self._listener(None)

    def _clock(self) -> None:
        """Account for one new token."""
        now = time.perf_counter()
        if self.usage.generated_tokens == 0:
            self._first = now
            self.usage.prefill_seconds = now - self._admitted
        self.usage.generated_tokens += 1
        self.usage.decode_seconds = now - self._first
