"""uvicorn's server without polling: it is told when it is to end."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import uvicorn

DATE_SECONDS = 1.0  # how old the Date header may be


class WakingServer(uvicorn.Server):
    """uvicorn's own looks ten times a second whether it is to end. This one is woken by whoever sets `should_exit`, in
    any thread or signal handler; once a second is left, for the Date header.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        self._asked_to_end = threading.Event()
        self._woken: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        super().__init__(config)

    @property
    def should_exit(self) -> bool:
        """Whether it is to end."""
        return self._asked_to_end.is_set()

    @should_exit.setter
    def should_exit(self, value: bool) -> None:
        if value:
            self._asked_to_end.set()
        if value and self._loop is not None and self._woken is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended
                self._loop.call_soon_threadsafe(self._woken.set)

    async def main_loop(self) -> None:
        """Until it is to end."""
        self._loop, self._woken = asyncio.get_running_loop(), asyncio.Event()
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), DATE_SECONDS)
