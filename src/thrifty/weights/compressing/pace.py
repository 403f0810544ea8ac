"""How long the layers of a technique will take, told by the first of them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from thrifty.weights.results import LAYERS, Phase

_LAYER = re.compile(r"layers\.(\d+)(\..*)?$")


class Pace:
    """Counts the units of one stage and tells once, when the first layer is through, how long the rest will take.

    technique: its name. units: how many are to be made. A layer that is one unit tells at its end; one of several when
    the first unit of the next layer is made. `restart` leaves out the seconds so far, those of a search.
    """

    def __init__(self, technique: str, units: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._technique, self._units, self._clock = technique, units, clock
        self._began, self._first = clock(), ""
        self._done, self._inside, self._told = 0, 0, False

    def restart(self) -> None:
        """Layers begin now."""
        self._began, self._inside = self._clock(), 0

    def closed(self, unit: str) -> Phase | None:
        """A unit was made; what there is to tell of it."""
        self._done += 1
        found = _LAYER.search(unit)
        if found is None:
            self.restart()  # the model's ends are no layers
        if self._told or found is None:
            return None
        self._inside += 1
        self._first = self._first or found[1]
        if found[2] and found[1] == self._first:
            return None
        self._told, pace = True, (self._clock() - self._began) / self._inside
        return Phase(self._technique, LAYERS, self._done, self._units, pace * (self._units - self._done), self._done)
