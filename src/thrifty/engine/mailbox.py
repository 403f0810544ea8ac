"""How events of requests reach their event loops: one wake-up of a loop for all that a step brought."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterable

from thrifty.engine.answer import Event
from thrifty.engine.request import Handle


class Outbox:
    """Mailboxes with news, kept by an engine's thread until a step is over.

    To wake a loop is a system call, which takes more time than all else that is done here for a token.
    """

    def __init__(self) -> None:
        self._news: deque[Mailbox] = deque()
        self._thread: int | None = None

    def open(self) -> None:
        """The calling thread is the engine's: from now on its news wait for `deliver`."""
        self._thread = threading.get_ident()

    def add(self, mailbox: Mailbox) -> None:
        """In any thread: this one has news. Those of other threads than the engine's are delivered at once."""
        self._news.append(mailbox)
        if threading.get_ident() != self._thread:
            self.deliver()

    def deliver(self) -> None:
        """Wake the loops of all mailboxes with news. Who cannot read any more has its request ended.

        Several threads may be here at a time: each takes what is left.
        """
        loops: dict[asyncio.AbstractEventLoop, list[Mailbox]] = {}
        while self._news:
            try:
                mailbox = self._news.popleft()
            except IndexError:  # another thread took the last one
                break
            loops.setdefault(mailbox.loop, []).append(mailbox)
        for loop, mailboxes in loops.items():
            try:
                loop.call_soon_threadsafe(_wake, mailboxes)
            except RuntimeError:  # the loop is closed
                for mailbox in mailboxes:
                    mailbox.cancel()


class Mailbox:
    """Takes a request's events in the engine's thread, and gives them to the event loop that submitted it.

    events: those that nobody has taken yet, in their order; None is behind the last one.
    """

    def __init__(self, outbox: Outbox) -> None:
        """In the event loop."""
        self.events: deque[Event | None] = deque()
        self.handle: Handle | None = None
        self.loop = asyncio.get_running_loop()
        self._outbox = outbox
        self._told = False
        self._waiter: asyncio.Future[bool] | None = None
        self._heard = 0.0

    def put(self, event: Event | None) -> None:
        """The request's listener, in the engine's thread."""
        self.events.append(event)
        if not self._told:
            self._told = True
            self._outbox.add(self)

    def cancel(self) -> None:
        """In the engine's thread: end the request, where it was submitted."""
        if self.handle is not None:
            self.handle.cancel()

    def wake(self) -> None:
        """In the event loop: there are events."""
        self._told = False
        self._heard = self.loop.time()
        self._answer(True)

    async def arrival(self) -> bool:
        """Wait until there are events; False where a `Silence` was told first. For one reader."""
        self._waiter = self.loop.create_future()
        try:
            return bool(self.events) or await self._waiter
        finally:
            self._waiter = None

    def silent(self, patience: float) -> float:
        """Tell who waits that nothing came for so many seconds, where that is so. Returns when to look again."""
        if self.loop.time() >= self._heard + patience:
            self._heard = self.loop.time()
            self._answer(False)
        return self._heard + patience

    def listen(self) -> None:
        """Silence is counted from now on."""
        self._heard = self.loop.time()

    def _answer(self, news: bool) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(news)


class Silence:
    """Within it the reader of a mailbox is told of each time that nothing came for `patience` seconds. There is one
    timer, which looks when it could be so, instead of one for each event.
    """

    def __init__(self, mailbox: Mailbox, patience: float) -> None:
        self._mailbox, self._patience = mailbox, patience
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Silence:
        self._mailbox.listen()
        self._timer = self._mailbox.loop.call_later(self._patience, self._look)
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        again = self._mailbox.silent(self._patience)
        self._timer = self._mailbox.loop.call_at(again, self._look)


def _wake(mailboxes: Iterable[Mailbox]) -> None:
    for mailbox in mailboxes:
        mailbox.wake()
