"""The recipes of one model's new requests while its engine is short."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from thrifty.engine.asynchronous import AsyncEngine
from thrifty.errors import ThriftyError
from thrifty.serving.tightening.ladder import Ladder, Tables
from thrifty.serving.tightening.level import Level

_LOG = logging.getLogger("thrifty.serving")

PERIOD = 0.5
"""Seconds between two looks at an engine while a rung is in use. Else it is looked at when a request comes."""


class Rung(NamedTuple):
    """A recipe of a ladder: its number, from 1 for the mildest, and its cache tables."""

    number: int
    cache: Tables


class Tightening:
    """Looks at an engine and says with which recipe a new request begins."""

    def __init__(self, ladder: Ladder, engine: AsyncEngine, told: Callable[[int], None]) -> None:
        """told: of the rung, whenever it was looked at."""
        self._ladder, self._engine, self._told = ladder, engine, told
        self._level = Level(ladder)
        self._watching: asyncio.Task[None] | None = None

    async def rung(self) -> Rung | None:
        """What a request begins with that comes now and brings no recipe; None: nothing is short, it is as ever."""
        number = await self._look()
        if number and (self._watching is None or self._watching.done()):
            self._watching = asyncio.create_task(self._watch())
        return Rung(number, self._ladder.rungs[number - 1]) if number else None

    def close(self) -> None:
        """Look no more."""
        if self._watching is not None:
            self._watching.cancel()
        self._told(0)

    async def _look(self) -> int:
        before = self._level.rung
        rung = self._level.observe(await self._engine.pressure(), time.monotonic())
        if rung != before:
            _LOG.info("new requests begin with %s", f"recipe {rung} of --tighten" if rung else "their own recipe again")
        self._told(rung)
        return rung

    async def _watch(self) -> None:
        """Until nothing is short, whether requests come or not."""
        with contextlib.suppress(ThriftyError):  # the engine was closed
            while self._level.rung:
                await asyncio.sleep(PERIOD)
                await self._look()
