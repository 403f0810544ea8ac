"""Running a function in a process of its own and killing it at some moment."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator


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


def duration(function: Callable[[], object], prepare: Callable[[], object]) -> float:
    """Seconds that the function takes in a process of its own, prepared each time: the quickest of three."""
    quickest = float("inf")
    for _ in range(3):
        prepare()
        begin = time.monotonic()
        assert finish(start(function)) == 0
        quickest = min(quickest, time.monotonic() - begin)
    return quickest


def random_kills(
    function: Callable[[], object], prepare: Callable[[], object], seed: int, kills: int = 20
) -> Iterator[bool]:
    """Yields after every attempt, whether or not the function was still running, until `kills` hit it in the middle.

    prepare: called before each attempt. Moments are uniform over the quickest duration. Fails after ten times as many
    attempts.
    """
    moments, hits = random.Random(seed), 0
    seconds = duration(function, prepare)
    for _ in range(10 * kills):
        prepare()
        hit = kill_after(function, moments.uniform(0, seconds))
        hits += hit
        yield hit
        if hits == kills:
            return
    raise AssertionError(f"only {hits} of {10 * kills} kills hit a running process")
