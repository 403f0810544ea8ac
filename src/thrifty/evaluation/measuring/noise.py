"""How much of the machine others took while something was timed: a disturbed timing is void."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

LIMIT = 0.01  # of the processors' time; beyond it a timing is void
DISTURBED = 0.03  # beyond it a timing is none that a user should be told as a fact
IDLE = ("idle", "iowait", "guest", "guest_nice")  # guest time is counted in user time already


@dataclass
class Noise:
    """others: the share of all processors' time that other processes took during a span."""

    others: float = 0.0

    @property
    def void(self) -> bool:
        """Whether a timing of the span means little."""
        return self.others > LIMIT


@contextmanager
def listening() -> Iterator[Noise]:
    """Watch a span. Spans under half a second are too short for the system's clock ticks to tell 1 %."""
    noise, busy, own, start = Noise(), _busy(), _own(), time.perf_counter()
    try:
        yield noise
    finally:
        capacity = (time.perf_counter() - start) * (psutil.cpu_count() or 1)
        noise.others = max(0.0, (_busy() - busy) - (_own() - own)) / capacity


def _busy() -> float:
    times = psutil.cpu_times()._asdict()
    return sum(seconds for name, seconds in times.items() if name not in IDLE)


def _own() -> float:
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)
