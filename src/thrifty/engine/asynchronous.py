"""The asynchronous interface for a server: the step loop in one thread, answers as async iterators."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from thrifty.arrays import Array, Floats
from thrifty.decoding.grammar import Grammar
from thrifty.decoding.sampling import TokenLogprob
from thrifty.engine.answer import Event, own_error
from thrifty.engine.async_handle import AsyncHandle
from thrifty.engine.engine import Engine
from thrifty.engine.inspection import EnginePressure, EngineProbe, EngineUsage
from thrifty.engine.mailbox import Mailbox, Outbox
from thrifty.engine.prompts import encoded
from thrifty.engine.request import Handle, Request, Result, check_request
from thrifty.engine.sessions.sessions import SessionFacts
from thrifty.errors import ThriftyError
from thrifty.models.adapters import Adapter

Order = tuple[Callable[[], Any], concurrent.futures.Future[Any]]
"""What the thread is to do, and where its result goes."""


class AsyncEngine:
    """Runs an Engine's step loop in one thread, and owns it: all that a server needs is here.

        async with AsyncEngine(engine) as running:
            prompt = await running.encode_chat(messages, tools=tools)
            handle = await running.submit(Request(prompt=prompt))
            async for event in handle: ...

    Between steps the thread takes orders from an inbox, so no event loop ever waits for the engine's lock. Of texts
    that are read beside the requests it computes one piece between two steps, however many there are.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._wake = threading.Condition()
        self._inbox: deque[Order] = deque()
        self._pieces: deque[Order] = deque()  # of texts
        self._texts: set[object] = set()  # that are being read
        engine.wait_for(lambda: bool(self._texts))
        self._outbox = Outbox()
        self._closing = False
        self._failure: BaseException | None = None
        self._left: int | None = None
        self._thread = threading.Thread(target=self._run, name="thrifty-engine", daemon=True)
        self._thread.start()

    async def submit(self, request: Request) -> AsyncHandle:
        """Queue a request, and hold it: its events, usage and end. Cancelling the task that waits here cancels it.

        A grammar is compiled in a thread of its own. Raises what `Engine.submit` raises.
        """
        check_request(request)
        if request.sampling.grammar is not None:
            await self.compile(request.sampling.grammar)
        mailbox = Mailbox(self._outbox)

        def submit() -> Handle:
            mailbox.handle = self.engine.submit(request, mailbox.put)
            return mailbox.handle

        try:
            handle = await asyncio.wrap_future(self._order(submit))
        except BaseException:
            self._order(mailbox.cancel)
            raise
        return AsyncHandle(handle, mailbox, self._end, lambda: self._failure)

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        """Events of one request. Leaving the iteration (closed, exception, task cancelled) cancels it.

        Raises what `Engine.submit` raises, and the request's own error after its last event.
        """
        async with await self.submit(request) as handle:
            async for event in handle:
                yield event

    async def result(self, request: Request) -> Result:
        """The whole answer. Cancelling the task cancels the request."""
        async with await self.submit(request) as handle:
            return await handle.result()

    async def encode_chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """`Model.encode_chat` in a thread of its own: a template is its checkpoint's, and may take its time."""
        return await asyncio.to_thread(self.engine.model.encode_chat, messages, **options)

    async def encode(self, prompt: str | Sequence[int]) -> list[int]:
        """Token ids of a text, or the ids themselves, checked. Raises PromptError where there is nothing to go on."""
        return await asyncio.to_thread(encoded, self.engine.model, prompt, {})

    async def compile(self, grammar: Grammar) -> None:
        """`Engine.compile` in a thread of its own."""
        await asyncio.to_thread(self.engine.compile, grammar)

    async def add_adapter(self, name: str, source: Adapter | str | os.PathLike[str]) -> None:
        """See `Engine.add_adapter`; between two steps."""
        await asyncio.wrap_future(self._order(lambda: self.engine.add_adapter(name, source)))

    async def remove_adapter(self, name: str) -> None:
        """See `Engine.remove_adapter`; between two steps."""
        await asyncio.wrap_future(self._order(lambda: self.engine.remove_adapter(name)))

    async def mean_hidden(self, tokens: Sequence[int] | Array) -> Floats:
        """The mean of a text's final hidden states, fp32 [hidden]. Others decode between its chunks.

        Raises what `Engine.hidden_states` raises.
        """
        total = np.zeros(self.engine.model.config.hidden_size)
        async with contextlib.aclosing(self._read(lambda: self.engine.hidden_states(tokens))) as chunks:
            async for hidden in chunks:
                total += hidden.sum(axis=0, dtype=np.float64)
        mean: Floats = (total / len(tokens)).astype(np.float32)
        return mean

    async def prompt_logprobs(
        self, tokens: Sequence[int] | Array, alternatives: int = 0, salt: str | None = None
    ) -> list[TokenLogprob]:
        """See `Engine.prompt_logprobs`; all of them. Others decode between its parts."""
        told: list[TokenLogprob] = []
        text = self._read(lambda: self.engine.prompt_logprobs(tokens, alternatives, salt))
        async with contextlib.aclosing(text) as parts:
            async for part in parts:
                told += part
        return told

    @property
    def failure(self) -> BaseException | None:
        """What stopped the engine; None while it takes requests."""
        return self._failure

    def probe(self) -> EngineProbe:
        """See `Engine.probe`."""
        return self.engine.probe()

    async def usage(self) -> EngineUsage:
        """See `Engine.usage`; taken between two steps."""
        return await asyncio.wrap_future(self._order(self.engine.usage))

    async def pressure(self) -> EnginePressure:
        """See `Engine.pressure`; taken between two steps."""
        return await asyncio.wrap_future(self._order(self.engine.pressure))

    async def sessions(self, salt: str = "") -> list[SessionFacts]:
        """See `SessionAccess.facts`; taken between two steps."""
        return await asyncio.wrap_future(self._order(lambda: self.engine.sessions.facts(salt)))

    async def drop_session(self, name: str, salt: str = "") -> bool:
        """See `SessionAccess.drop`."""
        return await asyncio.wrap_future(self._order(lambda: self.engine.sessions.drop(name, salt)))

    async def save_session(self, name: str, folder: Path, salt: str = "") -> Path:
        """See `SessionAccess.save`; in a thread of its own."""
        return await asyncio.to_thread(self.engine.sessions.save, name, folder, salt)

    async def restore_session(self, name: str, folder: Path, salt: str = "") -> None:
        """See `SessionAccess.restore`; in a thread of its own."""
        await asyncio.to_thread(self.engine.sessions.restore, name, folder, salt)

    async def resize_memory(self, memory: int) -> int:
        """See `Engine.resize_memory`; done between two steps."""
        return await asyncio.wrap_future(self._order(lambda: self.engine.resize_memory(memory)))

    async def close(self) -> None:
        """Stop the thread and close the engine; requests that run are cancelled."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _read(self, begin: Callable[[], Iterator[Any]]) -> AsyncGenerator[Any, None]:
        """The pieces of a text that is read beside the requests. While it is read, who has no room for it waits."""
        token = object()
        pieces: Any = None

        def opened() -> Any:
            self._texts.add(token)
            return begin()

        def closed() -> None:
            self._texts.discard(token)
            if pieces is not None:
                pieces.close()

        try:
            pieces = await asyncio.wrap_future(self._order(opened))
            while (piece := await asyncio.wrap_future(self._order(lambda: next(pieces, None), True))) is not None:
                yield piece
        finally:
            self._order(closed)

    def _order(self, action: Callable[[], Any], is_piece: bool = False) -> concurrent.futures.Future[Any]:
        """Have the thread do something between two steps. is_piece: of a text; only one of these is done there."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        with self._wake:
            if self._closing:
                future.set_exception(ThriftyError(f"the engine takes no requests: {self._failure or 'it is closed'}"))
                return future
            (self._pieces if is_piece else self._inbox).append((action, future))
            self._wake.notify()
        return future

    def _end(self, handle: Handle) -> None:
        self._order(handle.cancel)

    def _run(self) -> None:
        self._outbox.open()
        try:
            while not self._closing:
                self._obey()
                if self.engine.busy:
                    self._step()
                    if not (self._texts and self.engine.usage().active == 0):
                        continue  # else all wait for the memory of a text, until its next piece is ordered
                elif not self._texts and self.engine.read_ahead():
                    continue
                with self._wake:
                    self._wake.wait_for(lambda: self._closing or self._inbox or self._pieces)
        except BaseException as error:
            self._failure = error
        with self._wake:
            self._closing = True
        try:
            while self._inbox or self._pieces:
                self._obey()
            self.engine.close()
        finally:
            self._outbox.deliver()

    def _step(self) -> None:
        """One step. An error of its own, or what is no Exception and came out of a request, stops the engine only where
        the next step raises too and no request has ended in between: here is nobody who could be interrupted.
        """
        try:
            self.engine.step()
        except BaseException:
            usage = self.engine.usage()
            left = usage.waiting + usage.active + usage.parked
            if self._left is not None and left >= self._left:
                raise
            self._left = left
        else:
            self._left = None
        finally:
            self._outbox.deliver()

    def _obey(self) -> None:
        """Do what was ordered by now, and one piece of a text. What is ordered meanwhile waits for the next step: else
        texts that follow each other would hold up all answers.
        """
        for _ in range(len(self._inbox)):
            self._do(*self._inbox.popleft())
        if self._pieces:
            self._do(*self._pieces.popleft())

    def _do(self, action: Callable[[], Any], future: concurrent.futures.Future[Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(action())
        except BaseException as error:  # an await must not be left without an answer, nor its loop interrupted
            future.set_exception(own_error(error))
        self._outbox.deliver()
