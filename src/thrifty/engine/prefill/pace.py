"""The pace of a prefill: how much of it runs between two decode steps of others."""

from __future__ import annotations

from thrifty.engine.runner import CHUNK

WEIGHT = 0.5  # of the newest measurement in the average: attention's share grows with every chunk


class Pace:
    """Cuts a prefill into slices of about the same time, by what one row through one layer has cost so far.

    How a prompt is cut changes no bit of its result, so the clock may choose.
    """

    def __init__(self, milliseconds: float) -> None:
        """milliseconds: what a slice should take; 0 never cuts a chunk."""
        self._target = milliseconds / 1e3
        self._cost: float | None = None

    @property
    def cuts(self) -> bool:
        """Whether chunks are cut at all."""
        return self._target > 0

    def anew(self) -> Pace:
        """The same target, for rows of another model."""
        return Pace(1e3 * self._target)

    def measured(self, rows: int, layers: int, seconds: float) -> None:
        """`rows` rows went through `layers` layers in so many seconds."""
        cost = seconds / (rows * layers)
        self._cost = cost if self._cost is None else self._cost + WEIGHT * (cost - self._cost)

    def rows(self, most: int) -> int:
        """Rows of the next chunk, a multiple of 128 up to `most`: as many as pass a layer within a slice."""
        if self._cost is None or self._cost * most <= self._target:
            return most
        return max(CHUNK, int(self._target / self._cost) // CHUNK * CHUNK)

    def share(self, rows: int, left: int) -> int:
        """How many of `left` equal pieces (each `rows` rows through one layer) the next slice takes: 1 until there
        is a measurement, then what fits, spread evenly over the slices that are needed.
        """
        if self._cost is None:
            return 1
        fitting = max(1, int(self._target / (self._cost * rows)))
        return -(-left // -(-left // fitting))

    def fits(self, seconds: float) -> bool:
        """Whether a slice may take so many seconds."""
        return seconds <= self._target
