"""What goes into the engine, and how its answer is read: requests, handles, results."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

from thrifty.arrays import Floats
from thrifty.decoding.option_values import flag, shown, tables, token_ids, whole
from thrifty.decoding.sampling import TokenLogprob
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.answer import Answer, Answered, Event, Listener, Sample, Usage
from thrifty.engine.media import Embeddings, PromptMedia, flattened, mixed
from thrifty.engine.prompts import prompt_ids
from thrifty.engine.steering import layer_numbers, steering_vectors
from thrifty.errors import PromptError

MOST_PRIORITY = 1000

__all__ = ["Embeddings", "Event", "Handle", "Listener", "Request", "Result", "Sample", "Usage"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt to continue."""

    #: Token ids and `Embeddings`, at least one row. Read back: one id a row, −1 for those that bring their embedding.
    prompt: Sequence[int | Embeddings]
    sampling: SamplingParameters = field(default_factory=SamplingParameters)
    #: The recipe's cache tables (`[{"technique": "kivi", "bits": 2}]`), None for the engine's own.
    cache: Sequence[Mapping[str, Any]] | None = None
    #: Likewise.
    decoding: Sequence[Mapping[str, Any]] | None = None
    #: Likewise those of the stage "prompt", which look at the prompt before it is read.
    programs: Sequence[Mapping[str, Any]] | None = None
    #: Independent answers that share one prefill.
    samples: int = 1
    #: Teacher forcing: the answer begins with these tokens, whatever the logits say; the events carry what the model
    #: thought of them, and none of them ends the answer.
    forced: Sequence[int] | None = None
    #: How many tokens the model may choose after forced ones (`sampling.max_tokens` counts only where none are forced).
    free: int = 0
    #: Each event carries its fp32 logits.
    logits: bool = False
    #: The most that its caches, their statistics and the hidden state of its prompt may take in the ledger at any
    #: moment, None for no bound of its own; a capacity that the recipe leaves to the "budget" is the largest that fits.
    cache_bytes: int | None = None
    #: Prefixes are shared only between equal salts.
    salt: str = ""
    #: False keeps the prompt out of the prefix tree, both ways.
    share_prefix: bool = True
    #: The conversation's name: it goes on from the compressed cache that its last request left, or begins one.
    session: str | None = None
    #: Who it is for: where several wait, the one that was served least is next (see `engine/admission/fair_queue.py`).
    owner: str = ""
    #: Higher ones are admitted first.
    priority: int = 0
    #: The name of one of the engine's adapters.
    adapter: str | None = None
    #: Layers: each event carries the hidden state after them, of the row that chose its token.
    taps: Sequence[int] = ()
    #: Layer → [hidden] fp32, added to the state after the layer at every row, the prompt's too.
    steering: Mapping[int, Floats] = field(default_factory=dict)
    #: The embedded pieces of the prompt, which the engine takes out of it.
    media: PromptMedia | None = None
    identity: str = field(default_factory=lambda: os.urandom(8).hex())

    def __post_init__(self) -> None:
        prompt, media = flattened(self.prompt) if mixed(self.prompt) else (tuple(prompt_ids(self.prompt)), self.media)
        if media is not None:
            media.check(prompt)
        values: dict[str, Any] = {
            "prompt": prompt,
            "media": media,
            "cache": tables("cache", self.cache),
            "decoding": tables("decoding", self.decoding),
            "programs": tables("programs", self.programs),
            "taps": layer_numbers("taps", self.taps),
            "steering": steering_vectors(self.steering),
            "samples": whole("samples", self.samples, 1, "1 or more"),
            "priority": whole(
                "priority", self.priority, -MOST_PRIORITY, f"{-MOST_PRIORITY} to {MOST_PRIORITY}", MOST_PRIORITY
            ),
            "free": whole("free", self.free, 0, "0 or more"),
            "logits": flag("logits", self.logits),
            "share_prefix": flag("share_prefix", self.share_prefix),
        }
        if not isinstance(self.sampling, SamplingParameters):
            raise PromptError(f"sampling = {shown(self.sampling)}; use SamplingParameters(...)")
        for name in ("salt", "owner"):
            if not isinstance(getattr(self, name), str):
                raise PromptError(f"{name} = {shown(getattr(self, name))} is no text; use a string")
        if self.forced is not None and self.sampling.grammar is not None:
            raise PromptError("forced tokens come whatever a grammar says; leave forced or sampling.grammar out")
        if self.adapter is not None and not isinstance(self.adapter, str):
            raise PromptError(f"adapter = {shown(self.adapter)} is no name; use one of the engine's adapters, or None")
        if self.session is not None:
            check_session(self.session, self.samples, media is not None)
        if self.forced is not None:
            values["forced"] = token_ids("forced", self.forced)
            if not values["forced"]:
                raise PromptError("forced is empty; it needs at least 1 token, or None to sample")
        if self.cache_bytes is not None:
            values["cache_bytes"] = whole("cache_bytes", self.cache_bytes, 1, "1 byte or more, or None")
        if values["free"] and self.forced is None:
            raise PromptError(f"free = {self.free} counts tokens after forced ones; none are forced: use max_tokens")
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The prompt's token ids, without rows that have none."""
        return self.ids if self.media is None else tuple(token for token in self.ids if token >= 0)

    @property
    def ids(self) -> tuple[int, ...]:
        """The prompt as it is read back: one id a row."""
        return self.prompt  # type: ignore[return-value]


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


LONGEST_NAME = 128
"""Characters of a session's name."""


def check_session(name: Any, samples: int, media: bool) -> None:
    """Raise PromptError for what is no name of a session, and for what none can hold."""
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise PromptError(f"session = {shown(name)} is no name; use 1 to {LONGEST_NAME} printable characters, or None")
    if samples > 1:
        raise PromptError(f"samples = {samples}, but a session goes on from one answer; use samples = 1")
    if media:
        raise PromptError("a session's prompt holds token ids alone; leave the embeddings or the session out")


def check_request(request: Any) -> None:
    """Raise PromptError for what is no Request."""
    if not isinstance(request, Request):
        raise PromptError(f"the request is {shown(request)}; use Request(prompt=...)")


class Driver(Protocol):
    """What a handle asks of the engine that it came from; see `Engine`."""

    def drive(self, handle: Handle, together: bool = False) -> None:
        """One step on behalf of a waiting handle."""
        ...

    def cancel(self, handle: Handle) -> None:
        """End a request and free its memory."""
        ...

    def abandon(self, answer: Answer) -> None:
        """Nobody can read this answer any more."""
        ...

    def fork(
        self,
        handle: Handle,
        sample: int,
        sampling: SamplingParameters | None,
        forced: Sequence[int] = (),
        free: int = 0,
    ) -> Handle:
        """See `Handle.fork`."""
        ...


class Handle(Answered):
    """A submitted request: stream it, wait for it, cancel it, fork it.

    Iterating drives the engine where no other thread does (`Engine.step`), so a script needs no loop of
    its own. Events arrive in order for each sample; those of several samples interleave. A handle is for
    one consumer.

    Who holds the handle holds the request. Leaving a loop over it, `text()` or `tokens()` leaves the request as it is:
    read on, wait for `result()`, or end it with `cancel()`; `with handle:` ends it in any case. Once the handle and
    its iterators are dropped, a request that was being read ends by itself. One that was never read goes on: its events
    come out of `Engine.step`, or go to its listener.

    answer: the engine's own record of the request.
    """

    def __init__(self, engine: Driver, request: Request, answer: Answer) -> None:
        self.request = request
        self.forks = 0
        self._engine = engine
        self.answer = answer
        self._read = False

    def __iter__(self) -> Iterator[Event]:
        """Events until every sample is finished. Raises the request's error after its last event."""
        self._read = True
        return self._iterate()

    def _iterate(self, together: bool = False) -> Iterator[Event]:
        events = self.answer.events
        while True:
            while events:
                yield events.popleft()
            if self.finished:
                break
            self._engine.drive(self, together)
        if self.error is not None:
            raise self.error

    def tokens(self, sample: int = 0) -> Iterator[int]:
        """The token ids of one sample as they come."""
        return (event.token for event in self if event.sample == sample and event.token is not None)

    def text(self, sample: int = 0) -> Iterator[str]:
        """The text of one sample as it becomes certain; empty pieces are left out."""
        return (event.text for event in self if event.sample == sample and event.text)

    def result(self) -> Result:
        """Wait for the end. Raises the request's error; a cancelled request returns what it had.

        Where the waiting is left by an error (Ctrl-C, a signal handler's), the request is cancelled.
        """
        try:
            self._read = True
            for _ in self._iterate(together=True):
                pass
        except BaseException:
            self.cancel()
            raise
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

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def abandon(self) -> None:
        """`cancel` for finalisers: it never waits. Where the engine is in the middle of a call, the request ends when
        that does.
        """
        if not self.finished:
            self._engine.abandon(self.answer)

    def __del__(self) -> None:
        if getattr(self, "_read", False) and not self.answer.listened:
            self.abandon()
