"""The asynchronous interface for a server: the step loop in one thread, answers as async iterators."""

from __future__ import annotations

from collections.abc import AsyncIterator

from thrifty.engine.engine import Engine
from thrifty.engine.request import Event, Request, Result


class AsyncEngine:
    """Runs an Engine's step loop in one thread; `stream` and `result` belong to any event loop.

    async with AsyncEngine(engine) as running:
        async for event in running.stream(request): ...
    """

    def __init__(self, engine: Engine) -> None:
        raise NotImplementedError

    def stream(self, request: Request) -> AsyncIterator[Event]:
        """Events of one request. Leaving the loop (break, exception, task cancelled) cancels the request."""
        raise NotImplementedError

    async def result(self, request: Request) -> Result:
        """The whole answer. Cancelling the task cancels the request."""
        raise NotImplementedError

    async def close(self) -> None:
        """Stop the thread and close the engine."""
        raise NotImplementedError
