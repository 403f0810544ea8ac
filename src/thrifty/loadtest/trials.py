"""Runs of a load against an endpoint: one, or a sweep over rates."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from thrifty.loadtest.api import Endpoint
from thrifty.loadtest.arrivals import arrival_times
from thrifty.loadtest.figures import PERCENTILES, figures
from thrifty.loadtest.load import Load, Measured, send
from thrifty.loadtest.prompts import Scale
from thrifty.loadtest.sweep import rates_around
from thrifty.loadtest.workload import Workload


class Progress(Protocol):
    """Told how far a run is."""

    def advance(self) -> None:
        """One more request is over."""
        ...


Watch = Callable[[str, int], AbstractContextManager[Progress]]
"""Opens the progress of a run: what it is, and of how many requests."""


@dataclass(frozen=True)
class Pace:
    """How requests are sent. rate: a second, infinite for all at once. concurrency: most at a time, None for no bound.
    With an infinite rate and a bound it is a closed loop: a request as soon as another one ends.
    """

    rate: float = math.inf
    burstiness: float = 1.0
    concurrency: int | None = None

    @property
    def label(self) -> str:
        """In words."""
        if math.isinf(self.rate):
            return "all at once" if self.concurrency is None else f"{self.concurrency} at a time"
        bound = "" if self.concurrency is None else f", {self.concurrency} at a time"
        return f"{self.rate:g} requests/s{bound}"

    def facts(self) -> dict[str, Any]:
        """Under vLLM's names, JSON-ready."""
        rate = "inf" if math.isinf(self.rate) else self.rate
        return {"request_rate": rate, "burstiness": self.burstiness, "max_concurrency": self.concurrency}


@dataclass(frozen=True)
class Trials:
    """What every run of a session shares. stop: set to end at once, with what was measured until then."""

    endpoint: Endpoint
    workload: Workload
    scale: Scale
    watch: Watch
    stop: asyncio.Event

    async def run(self, pace: Pace, number: int = 0) -> Measured:
        """One run. number: of the trial; runs of different numbers share no prompt."""
        prompts = self.workload.prompts(self.scale, number)
        chance = random.Random(f"{self.workload.seed} arrivals {number}")
        times = arrival_times(len(prompts), pace.rate, pace.burstiness, chance)
        closed = math.isinf(pace.rate) and pace.concurrency is not None
        load = Load(prompts, None if closed else times, pace.concurrency)
        with self.watch(pace.label, len(prompts)) as progress:
            return await send(load, self.endpoint.ask, progress.advance, self.stop)

    async def sweep(
        self,
        pace: Pace,
        rates: Sequence[float] | None,
        objectives: Mapping[str, float],
        percentiles: Sequence[float] = PERCENTILES,
    ) -> list[dict[str, Any]]:
        """The figures of a run at each rate, ascending. rates: None for some around the capacity, which is measured
        first, in a closed loop of `pace.concurrency` requests at a time; that run's figures come first then, with the
        rate "inf". Raises LoadError where no request of it is answered.
        """
        runs = []
        if rates is None:
            whole = Pace(math.inf, 1.0, pace.concurrency)
            measured = await self.run(whole, 1)
            runs.append(figures(measured, objectives, percentiles) | whole.facts())
            if self.stop.is_set():
                return runs
            rates = rates_around(runs[0]["request_throughput"])
        for number, rate in enumerate(rates, 2):
            at = Pace(rate, pace.burstiness, None)
            measured = await self.run(at, number)
            runs.append(figures(measured, objectives, percentiles) | at.facts())
            if self.stop.is_set():
                break
        return runs
