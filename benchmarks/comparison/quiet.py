"""Which other processes took the CPU while something was timed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from thrifty.evaluation.measuring.noise import LIMIT

Usage = Mapping[tuple[int, float], tuple[str, float]]
"""CPU seconds by process: (pid, start) → (name, user and system seconds, those of its finished children included)."""


KERNEL = 2  # the parent of the kernel's threads, which work for everyone, us included


@dataclass
class Disturbance:
    """worst, share: the name of the greediest other process, and what it took of one processor's time. total: what
    all others took together of all processors' time.
    """

    share: float = 0.0
    total: float = 0.0
    worst: str = ""

    @property
    def void(self) -> bool:
        """Whether a timing of the span means little."""
        return max(self.share, self.total) > LIMIT


def disturbance(before: Usage, after: Usage, seconds: float, processors: int) -> Disturbance:
    """What happened between two usages that lie `seconds` apart. A process that came in between counts whole."""
    used = {key: max(0.0, spent - before.get(key, ("", 0.0))[1]) for key, (_, spent) in after.items()}
    if not used or seconds <= 0:
        return Disturbance()
    worst = max(used, key=lambda key: used[key])
    return Disturbance(used[worst] / seconds, sum(used.values()) / seconds / processors, after[worst][0])


def usage_of_others() -> Usage:
    """The usage of every process but this one, its descendants and the kernel's threads."""
    own = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    found = {}
    for process in psutil.process_iter(["name", "ppid", "create_time", "cpu_times"]):
        info = process.info
        if process.pid in own or KERNEL in (process.pid, info["ppid"]) or info["cpu_times"] is None:
            continue
        times = info["cpu_times"]
        spent = times.user + times.system + times.children_user + times.children_system
        found[process.pid, info["create_time"]] = (info["name"] or str(process.pid), float(spent))
    return found


@contextmanager
def listening() -> Iterator[Disturbance]:
    """Watch a span, which should be a second or longer: the system counts in ticks of 10 ms."""
    found, before, start = Disturbance(), usage_of_others(), time.perf_counter()
    try:
        yield found
    finally:
        seconds = time.perf_counter() - start
        heard = disturbance(before, usage_of_others(), seconds, psutil.cpu_count() or 1)
        found.share, found.total, found.worst = heard.share, heard.total, heard.worst
