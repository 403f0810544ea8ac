"""One call into an engine: alone, uninterrupted, and left in order whatever happens inside."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from thrifty.engine.answer import Answer
from thrifty.engine.uninterrupted import Uninterrupted

WAIT_SECONDS = 0.05


class Turn:
    """The context of every public call that changes an engine. One thread at a time has it; it may be entered again
    inside itself (a listener that cancels).

    What may not be raised in the middle is noted, and raised when the outermost call has done its work. What could not
    be done at once, because the engine was in the middle of a call, is done when that ends.
    """

    def __init__(self, reap: Callable[[Answer], None], waiting: Any = None) -> None:
        """reap: ends the request of an answer that nobody reads any more. waiting: a native Waiting, which counts the
        threads that want the turn.
        """
        self._lock = threading.RLock()
        self._uninterrupted = Uninterrupted()
        self._reap = reap
        self._waiting = waiting
        self._depth = 0
        self._noted: list[BaseException] = []
        self._abandoned: deque[Answer] = deque()

    def __enter__(self) -> None:
        self._uninterrupted.__enter__()  # before the lock: a signal may still raise here, with nothing taken
        if not self._lock.acquire(blocking=False):
            self._wait()
        self._depth += 1

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        noted: list[BaseException] = []
        try:
            if self._depth == 1:
                self._reap_abandoned()
                noted, self._noted = self._noted, []
        finally:
            self._depth -= 1
            self._lock.release()
            self._uninterrupted.__exit__()
        if noted and error is None:
            raise noted[0]

    def _wait(self) -> None:
        """Until another thread gives the turn away; what native code does for several tokens it ends for that."""
        self._count(1)
        try:
            while not self._lock.acquire(timeout=WAIT_SECONDS):  # signals that came are told
                self._uninterrupted.__exit__()
                self._uninterrupted.__enter__()
        finally:
            self._count(-1)

    def _count(self, more: int) -> None:
        if self._waiting is not None:
            self._waiting.add(more)

    def note(self, error: BaseException) -> None:
        """Raise it when the outermost call has done its work."""
        self._noted.append(error)

    def note_interrupt(self, error: BaseException) -> None:
        """Note what is no Exception: KeyboardInterrupt and SystemExit are meant for who called, whomever they hit."""
        if not isinstance(error, Exception):
            self.note(error)

    def abandon(self, answer: Answer) -> None:
        """End a request that nobody reads any more: now, or when the call that is under way ends.

        May be called by a finaliser, which runs in any thread and at any line: it never waits for the lock.
        """
        self._abandoned.append(answer)
        with self._uninterrupted:
            if not self._lock.acquire(blocking=False):
                return  # who has the turn sees to it
            try:
                if not self._depth:
                    with self:
                        pass
            finally:
                self._lock.release()

    def _reap_abandoned(self) -> None:
        while self._abandoned:
            try:
                self._reap(self._abandoned.popleft())
            except BaseException as error:
                self.note(error)
