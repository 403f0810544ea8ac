"""Holding back signal handlers while something must be done whole: Ctrl-C, alarms and the like come right after it."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import signal
import threading
from types import FrameType
from typing import Any

HELD = tuple(
    int(getattr(signal, name))
    for name in (
        "SIGINT", "SIGTERM", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGVTALRM", "SIGPROF", "SIGCHLD",
        "SIGWINCH", "SIGXCPU", "SIGIO", "SIGTSTP", "SIGCONT", "SIGBREAK",
    )
    if hasattr(signal, name)
)  # fmt: skip
"""Signals whose handler, where it is written in Python, may raise an error in the middle of any line."""


class Uninterrupted:
    """A context in which no signal handler written in Python runs. Signals that arrive meanwhile are kept, and their
    handlers called when the outermost context ends: what they raise is raised there.

    Python runs handlers in the main thread only; in any other thread this does nothing. A context may be entered again
    inside itself (also by a finaliser, at any line), or inside another one's. It takes about 4 µs (`signal.signal`
    would take 10; `_signal` is what it calls).
    """

    def __init__(self) -> None:
        self._depth = 0
        self._replaced: list[tuple[int, Any]] = []
        self._arrived: list[tuple[int, FrameType | None]] = []
        self._known: dict[int, Any] = {}
        self._hold = self._keep  # one object: a bound method is made anew whenever it is read

    def __enter__(self) -> None:
        if threading.get_ident() != threading.main_thread().ident:
            return
        self._depth += 1
        if self._depth > 1:
            return
        try:
            for number in HELD:
                handler = _signal.getsignal(number)
                if callable(handler):
                    if handler is self._hold:  # put back by one who had found it inside
                        handler = self._known[number]
                    self._known[number] = handler
                    self._replaced.append((number, handler))
                    _signal.signal(number, self._hold)
        except BaseException:  # a signal that was not held yet
            self._end()
            raise

    def __exit__(self, *_: object) -> None:
        if threading.get_ident() != threading.main_thread().ident:
            return
        if self._depth > 1:
            self._depth -= 1
            return
        try:
            self._end()
        except BaseException:
            self._end()  # a signal may leave a loop between two rounds
            raise

    def _keep(self, number: int, frame: FrameType | None) -> None:
        if self._depth:
            self._arrived.append((number, frame))
        else:
            _signal.signal(number, self._known[number])
            self._known[number](number, frame)

    def _end(self) -> None:
        """Put the handlers back, then call those whose signals arrived. Signals of handlers that are back already may
        raise at any line here: everything is finished first.
        """
        raised: BaseException | None = None
        while self._replaced:
            try:
                number, handler = self._replaced[-1]
                if _signal.getsignal(number) is self._hold:  # else it was exchanged meanwhile
                    _signal.signal(number, handler)
                self._replaced.pop()
            except BaseException as error:
                raised = error if raised is None else raised
        self._depth = 0
        while self._arrived:
            try:
                number, frame = self._arrived.pop(0)
                handler = _signal.getsignal(number)
                if callable(handler):
                    handler(number, frame)
            except BaseException as error:
                raised = error if raised is None else raised
        if raised is not None:
            raise raised
