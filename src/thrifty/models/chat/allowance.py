"""What one rendering of a chat template may take: a time, and bytes for all values that it holds at once."""

from __future__ import annotations

import sys
import time
from collections import Counter
from threading import local
from typing import Any

from thrifty.errors import TemplateError

MAX_SECONDS = 10.0  # of the thread's own time
MAX_BYTES = 1 << 27
OVERHEAD = 64  # bytes that a value costs beside its own
FOLLOWED = 1 << 10  # bytes of a value from which on it is given back once nobody holds it
SWEEP = 1 << 22  # bytes that are made before it is looked whether anything can be given back


class Allowance(local):
    """Of the rendering in this thread.

    Every value is charged when it is made. Of those that are large a reference is kept here: what nobody else holds any
    more, as a text that was replaced by a longer one, is given back. So it does not matter where a template hides what
    it holds, and one that copies its text again and again needs no more than two copies.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Start the clock and the allowance of a rendering, and let go of the last one's values."""
        self._end = time.thread_time() + MAX_SECONDS
        self._left = MAX_BYTES
        self._sweep_below = MAX_BYTES - SWEEP
        self._values: list[Any] = []
        self._sizes: list[int] = []

    def tick(self) -> None:
        """Raise TemplateError where the rendering takes too long."""
        if time.thread_time() > self._end:
            raise TemplateError(f"The chat template runs for more than {MAX_SECONDS:g} seconds.")

    def charge(self, nbytes: int) -> None:
        """Take bytes. Raises TemplateError where they are used up, and nothing can be given back."""
        self._left -= nbytes
        if self._left >= max(self._sweep_below, 0):
            return
        while self._sweep() and self._left < 0:
            self.tick()
        if self._left < 0:
            raise TemplateError(
                f"The chat template holds more than {MAX_BYTES >> 20} MB of values for one prompt. Give it fewer or "
                "shorter messages."
            )
        self._sweep_below = self._left - max(SWEEP, MAX_BYTES - self._left)

    def credit(self, nbytes: int) -> None:
        """Give back bytes that were charged."""
        self._left += nbytes

    def keep(self, *values: Any) -> None:
        """Charge values, without what they refer to, each for as long as anybody holds it."""
        total = OVERHEAD
        for value in values:
            nbytes = sys.getsizeof(value)
            if nbytes >= FOLLOWED:
                self._values.append(value)
                self._sizes.append(nbytes)
            total += nbytes
        self.charge(total)

    def _sweep(self) -> int:
        """Give back the values that are held here alone; returns their bytes. Newest first: what holds others is newer
        than these.
        """
        values, sizes, freed = self._values, self._sizes, 0
        self._values, self._sizes = [], []
        times = Counter(map(id, values))
        value = object()
        own = sys.getrefcount(value)  # of a value that only this variable holds
        while values:
            value, nbytes = values.pop(), sizes.pop()
            if sys.getrefcount(value) == own + times[id(value)] - 1:
                times[id(value)] -= 1
                freed += nbytes
            else:
                self._values.append(value)
                self._sizes.append(nbytes)
        self._values.reverse()
        self._sizes.reverse()
        self._left += freed
        return freed
