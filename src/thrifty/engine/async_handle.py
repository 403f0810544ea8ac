"""A request of an asynchronous engine, as its event loop holds it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from types import TracebackType

from thrifty.engine.answer import Answered, Event
from thrifty.engine.mailbox import Mailbox, Silence
from thrifty.engine.request import Handle, Request, Result
from thrifty.errors import ThriftyError


class AsyncHandle(Answered):
    """A submitted request: iterate its events, wait for its result, read its usage, cancel it.

    It is for one consumer in the event loop that submitted it. Leaving a loop over it leaves the request as it is: read
    on, wait for `result()`, or end it with `cancel()`; `async with handle:` ends it in any case, and so does dropping
    the handle.
    """

    def __init__(
        self,
        handle: Handle,
        mailbox: Mailbox,
        cancel: Callable[[Handle], None],
        failure: Callable[[], BaseException | None],
    ) -> None:
        """cancel: has the engine's thread end a request. failure: what stopped the engine, None while it runs."""
        self._handle = handle
        self.answer = handle.answer
        self._mailbox = mailbox
        self._cancel = cancel
        self._failure = failure
        self._over = False

    @property
    def request(self) -> Request:
        """What was submitted."""
        return self._handle.request

    def __aiter__(self) -> AsyncHandle:
        return self

    async def __anext__(self) -> Event:
        """The next event. Raises the request's error after its last event, ThriftyError where the engine stopped."""
        while not (self._over or self._mailbox.events):
            await self._mailbox.arrival()
        event = None if self._over else self._mailbox.events.popleft()
        if event is not None:
            return event
        self._over = True
        self._raise_error()
        raise StopAsyncIteration

    async def batches(self, patience: float) -> AsyncGenerator[list[Event], None]:
        """The events as they come, all that are there at a time; an empty list after each `patience` seconds in which
        none came. Raises as `__anext__` does.
        """
        events = self._mailbox.events
        with Silence(self._mailbox, patience):
            while not self._over:
                if not events and not await self._mailbox.arrival():
                    yield []
                    continue
                batch: list[Event] = []
                while events and not self._over:
                    event = events.popleft()
                    if event is None:
                        self._over = True
                    else:
                        batch.append(event)
                if batch:
                    yield batch
        self._raise_error()

    async def result(self) -> Result:
        """Wait for the end; events that were not read are skipped. A cancelled request returns what it had.

        Raises the request's error. Cancelling the task that waits cancels the request.
        """
        try:
            async for _ in self:
                pass
        except BaseException:
            self.cancel()
            raise
        return Result(self.identity, self.samples, self.usage)

    def cancel(self) -> None:
        """Have all samples ended between two steps, and their memory freed; their last events come as ever. It does not
        wait. Without effect on a finished request.
        """
        if not self.finished:
            self._cancel(self._handle)

    async def __aenter__(self) -> AsyncHandle:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            self._handle.abandon()

    def _raise_error(self) -> None:
        if self.error is not None:
            raise self.error
        failure = self._failure()
        if failure is not None:
            raise ThriftyError(f"the engine stopped: {failure}") from failure
