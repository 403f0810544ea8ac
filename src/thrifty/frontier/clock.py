"""The time that a search may take."""

from __future__ import annotations

import time


class OutOfTime(Exception):
    """The search's time is over; what was being made or measured is given up."""


class Clock:
    """minutes: what there is in all, None: no bound."""

    def __init__(self, minutes: float | None) -> None:
        self._seconds = float("inf") if minutes is None else 60 * minutes
        self.start()

    def start(self) -> None:
        """Count from now on."""
        self._began = time.monotonic()

    @property
    def late(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() - self._began >= self._seconds

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    @property
    def left(self) -> float:
        """Seconds until the time is over."""
        return max(0.0, self._began + self._seconds - time.monotonic())

    def check(self) -> None:
        """Raise OutOfTime where the time is over."""
        if self.late:
            raise OutOfTime

    def deadline(self, share: float, part: float) -> float:
        """When `part` of what is left until `share` of the time is over, seconds on the monotonic clock."""
        now = time.monotonic()
        return now + max(0.0, self._began + self._seconds * share - now) * part
