"""Ctrl-C in a conversation: it clears the line at the prompt, and stops the answer everywhere else."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """Within it SIGINT raises KeyboardInterrupt only while `read` waits; at all other times it sets `asked`.

    So it never strikes between two statements of the program. Without effect outside the main thread.
    """

    def __init__(self) -> None:
        self.asked = False
        self._reading = False
        self._before: Any = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def read(self, ask: Callable[[], str]) -> str:
        """What `ask` returns. Raises KeyboardInterrupt where SIGINT comes before that, and what `ask` raises."""
        self.asked = False
        try:
            self._reading = True
            return ask()
        finally:
            self._reading = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._reading:
            self.asked = True
            return
        self._reading = False
        raise KeyboardInterrupt
