"""How far a long command is, on standard error: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thrifty.cli.shared import output
from thrifty.cli.shared.ticker import Ticker, seconds

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

BAR, SHORTEST = 40, 5  # columns of a bar, and the fewest of it with the gap before
TIME = 8  # columns of a time with the gap before


@dataclass(frozen=True)
class Beside:
    """A part of the work that has steps of its own, before the next step is done."""

    text: str
    done: int
    total: int
    seconds_left: float

    @property
    def left(self) -> str:
        """The time that is left of it."""
        return f"about {seconds(self.seconds_left)} left of it"


class Steps:
    """What is done of what there is to do. total may change as it becomes known. limit: seconds after which it ends,
    done or not.
    """

    def __init__(self, what: str, total: int, limit: float = math.inf) -> None:
        self.what = what
        self.total = total
        self.limit = limit
        self.done = 0
        self.pace: float | None = None  # seconds a step, where it is known better than from all steps so far
        self.beside: Beside | None = None

    def advance(self) -> None:
        """One more is done."""
        self.done += 1
        self.total = max(self.total, self.done)

    def show_beside(self, part: Beside) -> None:
        """Show a part until its last step is done."""
        self.beside = part if part.done < part.total else None

    def line(self, elapsed: float) -> str:
        """How far it is after so many seconds, and about how long it will take yet."""
        said = f"{self.what}: {self.done} of {self.total} in {seconds(elapsed)}"
        if self.beside is not None:
            return f"{said}; {self.beside.text}: {self.beside.done} of {self.beside.total}, {self.beside.left}"
        pace = elapsed / self.done if self.done and self.pace is None else self.pace or 0.0
        left = pace * (self.total - self.done) if self.done else math.inf
        ends = max(0.0, self.limit - elapsed)
        if ends < left:
            return f"{said}, at most {seconds(ends)} left"
        return f"{said}, about {seconds(left)} left" if self.done else said


class ProgressBar(Steps):
    """Steps that a terminal shows as a bar."""

    def __init__(self, what: str, total: int, limit: float = math.inf) -> None:
        super().__init__(what, total, limit)
        self.drawn = drawn(what, total, limit)
        self._task = self.drawn.add_task(what, total=total)
        self._beside: TaskID | None = None

    def advance(self) -> None:
        """One more is done."""
        super().advance()
        self.drawn.update(self._task, completed=self.done, total=self.total)

    def show_beside(self, part: Beside) -> None:
        """See Steps. A bar of its own below."""
        super().show_beside(part)
        if self._beside is None:
            self._beside = self.drawn.add_task(part.text, total=part.total)
        self.drawn.update(self._beside, description=part.text, completed=part.done, total=part.total)
        if self.beside is None:
            self.drawn.remove_task(self._beside)
            self._beside = None


@contextmanager
def progress(what: str, total: int, limit: float = math.inf) -> Iterator[Steps]:
    """Show how far it is while it lasts; call `advance` once a step. limit: see Steps."""
    if sys.stderr.isatty():
        bar = ProgressBar(what, total, limit)
        with bar.drawn:
            yield bar
        return
    steps = Steps(what, total, limit)
    with Ticker(steps.line, output.note):
        yield steps


def drawn(what: str, total: int, limit: float = math.inf) -> Progress:
    """A bar as wide as there is room for: what, how far, the time so far, and the time left or the most there is. Where
    there is no room for all, times go before the bar, and what is done stays.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = output.messages()
    room = console.width - len(what) - 2 * len(str(total)) - 3
    times: list[ProgressColumn] = []
    most = f"of {seconds(limit)}" if math.isfinite(limit) else ""
    last = (TextColumn(most), len(most) + 1) if most else (TimeRemainingColumn(), TIME)
    for column, width in ((TimeElapsedColumn(), TIME), last):
        if room - width >= SHORTEST:
            times.append(column)
            room -= width
    bar = [BarColumn(bar_width=min(BAR, room - 1))] if room >= SHORTEST else []
    columns = (TextColumn("{task.description}"), *bar, MofNCompleteColumn(), *times)
    return Progress(*columns, console=console, transient=True)
