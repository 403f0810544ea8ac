"""What a model's steps take, as measured while they run: a line over their rows."""

from __future__ import annotations

REMEMBERED = 0.95  # what a measurement weighs beside the one after it
OUTLIER = 3.0  # times the expected seconds: more is somebody else's work, and counts as that


class StepCosts:
    """Seconds of a step of r rows ≈ base + slope · r, by least squares over what was measured, older steps weighing
    less. Rows of a step are read with the same weights: on a CPU the base is what reading them takes, the slope what
    arithmetic takes.
    """

    def __init__(self) -> None:
        self._weight = self._rows = self._squares = self._seconds = self._products = 0.0

    @property
    def known(self) -> bool:
        """Whether any step was measured."""
        return self._weight > 0

    def note(self, rows: int, seconds: float) -> None:
        """A step of so many rows took so long."""
        if self._weight > 1:
            seconds = min(seconds, OUTLIER * self.seconds(rows))
        self._weight = REMEMBERED * self._weight + 1
        self._rows = REMEMBERED * self._rows + rows
        self._squares = REMEMBERED * self._squares + rows * rows
        self._seconds = REMEMBERED * self._seconds + seconds
        self._products = REMEMBERED * self._products + rows * seconds

    def seconds(self, rows: float) -> float:
        """What a step of so many rows is expected to take; 0 where nothing was measured. As long as all measured steps
        had equally many rows, others are taken to be as long: weights are what is read.
        """
        if not self._weight:
            return 0.0
        mean_rows, mean = self._rows / self._weight, self._seconds / self._weight
        spread = self._squares / self._weight - mean_rows**2
        slope = 0.0
        if spread > 1e-3:
            slope = max(0.0, (self._products / self._weight - mean_rows * mean) / spread)
        return max(mean + slope * (rows - mean_rows), mean * min(1.0, rows / mean_rows))
