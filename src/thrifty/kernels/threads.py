"""The threads of native code: one pool a process, whoever asks for how many."""

from __future__ import annotations

import functools
import gc
import threading
import warnings
import weakref

from thrifty.errors import ThriftyWarning
from thrifty.kernels import dispatch


class PoolThreads:
    """Sets the size of the process's pool, and knows who asked for one and still uses it.

    The last number holds for all; results do not depend on it. Where it changes what another user of the pool asked
    for, a ThriftyWarning says so.
    """

    def __init__(self) -> None:
        self._asked: weakref.WeakKeyDictionary[object, int] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def set(self, threads: int, owner: object | None = None) -> None:
        """Have the pool run with so many threads. owner: uses the pool from now on, until `release` or its end.

        Raises KernelError with the numbers that work.
        """
        dispatch.set_threads(threads)
        if self._others(threads, owner):
            gc.collect()  # an engine that was dropped unclosed lies in a circle
        others = self._others(threads, owner)
        if owner is not None:
            with self._lock:
                self._asked[owner] = threads
        if others:
            asked = " and ".join(map(str, others))
            warnings.warn(
                f"native code now runs with threads = {threads}; an open engine of this process asked for {asked}, and "
                "all share one pool: ask for the same number, or close the other one first",
                ThriftyWarning,
                stacklevel=3,
            )

    def _others(self, threads: int, owner: object | None) -> list[int]:
        """The other numbers that users of the pool asked for."""
        with self._lock:
            return sorted({asked for user, asked in self._asked.items() if user is not owner and asked != threads})

    def release(self, owner: object) -> None:
        """`owner` uses the pool no longer."""
        with self._lock:
            self._asked.pop(owner, None)


@functools.cache
def pool_threads() -> PoolThreads:
    """Of this process."""
    return PoolThreads()
