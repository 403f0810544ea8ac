"""The rung of a ladder that new requests begin on: up while the server is short, down after it was calm for a while."""

from __future__ import annotations

from thrifty.engine.inspection import EnginePressure
from thrifty.serving.tightening.ladder import Ladder


class Level:
    """rung: 0 for none, else the number of the ladder's recipe.

    Between short and calm lies a band in which the rung stays: with the steps' times it keeps the level from flapping.
    """

    def __init__(self, ladder: Ladder) -> None:
        self.rung = 0
        self._ladder = ladder
        self._raised: float | None = None
        self._calm_since: float | None = None

    def observe(self, pressure: EnginePressure, now: float) -> int:
        """The rung from now on. now: seconds of a clock that only goes on."""
        if self._is_short(pressure):
            self._calm_since = None
            self._rise(now)
        elif self._is_calm(pressure):
            self._fall(now)
        else:
            self._calm_since = None
        return self.rung

    def _rise(self, now: float) -> None:
        settled = self._raised is None or now - self._raised >= self._ladder.settle_seconds
        if settled and self.rung < self._ladder.limit:
            self.rung += 1
            self._raised = now

    def _fall(self, now: float) -> None:
        if self._calm_since is None:
            self._calm_since = now
        if self.rung and now - self._calm_since >= self._ladder.calm_seconds:
            self.rung -= 1
            self._calm_since = now

    def _is_short(self, pressure: EnginePressure) -> bool:
        wait = self._ladder.wait_seconds
        lacks_memory = pressure.free is not None and pressure.free < self._ladder.free_share
        lacks_memory = lacks_memory or pressure.lacks_room or bool(pressure.parked)
        return lacks_memory or (wait is not None and pressure.waiting_seconds > wait)

    def _is_calm(self, pressure: EnginePressure) -> bool:
        wait = self._ladder.wait_seconds
        has_memory = not pressure.lacks_room and (pressure.free is None or pressure.free >= self._ladder.relaxed_share)
        return has_memory and not pressure.parked and (wait is None or pressure.waiting_seconds <= wait / 2)
