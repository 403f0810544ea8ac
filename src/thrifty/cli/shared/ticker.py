"""A line every few seconds while something takes long and no terminal shows a bar."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

PERIOD = 10.0  # seconds between two lines


class Ticker:
    """Within it, says every PERIOD seconds what is going on, from a thread of its own.

    text: the line, of the seconds since it was entered. say: where it goes.
    """

    def __init__(self, text: Callable[[float], str], say: Callable[[str], None]) -> None:
        self._text, self._say = text, say
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def _run(self) -> None:
        began = time.monotonic()
        while not self._ended.wait(PERIOD):
            self._say(self._text(time.monotonic() - began))

    def __enter__(self) -> Ticker:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()


def seconds(count: float) -> str:
    """A time for people, such as `42 s`, `3 min` or `2.1 h`."""
    if count < 120:
        return f"{count:.0f} s"
    return f"{count / 60:.0f} min" if count < 7200 else f"{count / 3600:.1f} h"
