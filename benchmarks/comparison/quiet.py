"""Which other processes took the CPU while something was timed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from thrifty.evaluation.noise import LIMIT

Usage = Mapping[tuple[int, float], tuple[str, float]]
"""CPU seconds by process: (pid, start) → (name, user and system seconds, those of its finished children included)."""


@dataclass
class Disturbance:
    """share: of one processor's time that all other processes took together. worst: the name of the greediest."""

    share: float = 0.0
    worst: str = ""

    @property
    def void(self) -> bool:
        """Whether a timing of the span means little."""
        return self.share > LIMIT


def disturbance(before: Usage, after: Usage, seconds: float) -> Disturbance:
    """What happened between two usages that lie `seconds` apart. A process that came in between counts whole."""
    used = {name: 0.0 for name, _ in after.values()}
    for key, (name, spent) in after.items():
        used[name] += max(0.0, spent - before.get(key, ("", 0.0))[1])
    if not used or seconds <= 0:
        return Disturbance()
    return Disturbance(sum(used.values()) / seconds, max(used, key=lambda name: used[name]))


def usage_of_others() -> Usage:
    """The usage of every process but this one and its descendants."""
    own = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    found = {}
    for process in psutil.process_iter(["name", "create_time", "cpu_times"]):
        times = process.info["cpu_times"]
        if process.pid in own or times is None:
            continue
        spent = times.user + times.system + times.children_user + times.children_system
        found[process.pid, process.info["create_time"]] = (process.info["name"] or str(process.pid), float(spent))
    return found


@contextmanager
def listening() -> Iterator[Disturbance]:
    """Watch a span, which should be a second or longer: the system counts in ticks of 10 ms."""
    found, before, start = Disturbance(), usage_of_others(), time.perf_counter()
    try:
        yield found
    finally:
        heard = disturbance(before, usage_of_others(), time.perf_counter() - start)
        found.share, found.worst = heard.share, heard.worst
