"""The asynchronous interface for a server: the step loop in one thread, answers as async iterators."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any

from thrifty.engine.answer import Event, own_error
from thrifty.engine.engine import Engine
from thrifty.engine.request import Handle, Request, Result
from thrifty.errors import ThriftyError


class AsyncEngine:
    """Runs an Engine's step loop in one thread; `stream` and `result` belong to any event loop.

        async with AsyncEngine(engine) as running:
            async for event in running.stream(request): ...

    Between steps the thread takes orders from an inbox, so no event loop ever waits for the engine's lock.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._wake = threading.Condition()
        self._inbox: deque[tuple[Callable[[], Any], concurrent.futures.Future[Any]]] = deque()
        self._closing = False
        self._failure: BaseException | None = None
        self._left: int | None = None
        self._thread = threading.Thread(target=self._run, name="thrifty-engine", daemon=True)
        self._thread.start()

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        """Events of one request. Leaving the iteration (closed, exception, task cancelled) cancels it.

        Raises what `Engine.submit` raises, and the request's own error after its last event.
        """
        conversation = _Conversation(self.engine, request)
        try:
            await asyncio.wrap_future(self._order(conversation.submit))
            while (event := await conversation.events.get()) is not None:
                yield event
            self._raise_failure(conversation.handle)
        finally:
            self._order(conversation.cancel)

    async def result(self, request: Request) -> Result:
        """The whole answer. Cancelling the task cancels the request."""
        conversation = _Conversation(self.engine, request)
        try:
            handle = await asyncio.wrap_future(self._order(conversation.submit))
            while await conversation.events.get() is not None:
                pass
            self._raise_failure(handle)
            return Result(handle.identity, handle.samples, handle.usage)
        finally:
            self._order(conversation.cancel)

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

    def _order(self, action: Callable[[], Any]) -> concurrent.futures.Future[Any]:
        """Have the thread do something between two steps."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        with self._wake:
            if self._closing:
                future.set_exception(ThriftyError(f"the engine takes no requests: {self._failure or 'it is closed'}"))
                return future
            self._inbox.append((action, future))
            self._wake.notify()
        return future

    def _raise_failure(self, handle: Handle | None) -> None:
        if handle is not None and handle.error is not None:
            raise handle.error
        if self._failure is not None:
            raise ThriftyError(f"the engine stopped: {self._failure}") from self._failure

    def _run(self) -> None:
        try:
            while not self._closing:
                self._obey()
                if self.engine.busy:
                    self._step()
                    continue
                with self._wake:
                    self._wake.wait_for(lambda: self._closing or self._inbox)
        except BaseException as error:
            self._failure = error
        with self._wake:
            self._closing = True
        self._obey()
        self.engine.close()

    def _step(self) -> None:
        """One step. An error of its own, or what is no Exception and came out of a request, stops the engine only where
        the next step raises too and no request has ended in between: here is nobody who could be interrupted.
        """
        try:
            self.engine.step()
        except BaseException:
            left = sum(self.engine.describe()["queues"].values())
            if self._left is not None and left >= self._left:
                raise
            self._left = left
        else:
            self._left = None

    def _obey(self) -> None:
        while self._inbox:
            action, future = self._inbox.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(action())
            except BaseException as error:  # an await must not be left without an answer, nor its loop interrupted
                future.set_exception(own_error(error))


class _Conversation:
    """One request between an event loop and the engine's thread."""

    def __init__(self, engine: Engine, request: Request) -> None:
        self.events: asyncio.Queue[Event | None] = asyncio.Queue()
        self.handle: Handle | None = None
        self._engine = engine
        self._request = request
        self._loop = asyncio.get_running_loop()

    def submit(self) -> Handle:
        """On the engine's thread."""
        self.handle = self._engine.submit(self._request, self._put)
        return self.handle

    def cancel(self) -> None:
        """On the engine's thread, after `submit`; without effect on a finished request."""
        if self.handle is not None:
            self.handle.cancel()

    def _put(self, event: Event | None) -> None:
        if self._loop.is_closed():
            self.cancel()  # nobody can read on
        else:
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)
