"""An engine of a search, which ends with the search's time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from thrifty.engine.engine import Engine
from thrifty.frontier.clock import Clock

if TYPE_CHECKING:
    from thrifty.engine.request import Event
    from thrifty.models.model import Model


class TimedEngine(Engine):
    """Makes no step once the time is over; raises OutOfTime then."""

    def __init__(self, clock: Clock, model: Model, **options: Any) -> None:
        super().__init__(model, **options)
        self._clock = clock

    def step(self) -> list[Event]:
        self._clock.check()
        return super().step()
