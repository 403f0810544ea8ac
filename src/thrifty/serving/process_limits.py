"""What a server asks of its own process before it listens: descriptors, and a word where the process must end."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import resource
import time

DESCRIPTORS = 65536
QUIET_SECONDS = 10.0


def prepare() -> None:
    """Take as many descriptors as the system grants, have fatal signals written to the log, and keep that short.

    A mapped model file that is cut short ends the process with SIGBUS, which no code survives: its log can say so.
    """
    faulthandler.enable()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # a system that grants less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    logging.getLogger("asyncio").addFilter(NotAgain("socket.accept() out of system resource"))


class NotAgain(logging.Filter):
    """Lets a message pass once in `QUIET_SECONDS`: where descriptors run out, every connection that waits tells."""

    def __init__(self, message: str) -> None:
        super().__init__()
        self._message = message
        self._last = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be written."""
        if not record.getMessage().startswith(self._message):
            return True
        now = time.monotonic()
        passes = now - self._last >= QUIET_SECONDS
        self._last = now if passes else self._last
        return passes
