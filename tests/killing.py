"""Running a function in a process of its own and killing it at some moment."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable


def start(function: Callable[[], object]) -> int:
    """The id of a forked process that runs the function and ends, with status 1 where it raised."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        function()
        status = 0
    finally:
        os._exit(status)


def finish(process: int) -> int:
    """The exit status of a process, after it ended by itself."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kill_after(function: Callable[[], object], seconds: float) -> bool:
    """Whether the function was still running when it was killed (kill -9) after so many seconds."""
    process = start(function)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    return finish(process) == -signal.SIGKILL


def duration(function: Callable[[], object]) -> float:
    """Seconds that the function takes in a process of its own."""
    begin = time.monotonic()
    assert finish(start(function)) == 0
    return time.monotonic() - begin
