"""How far a long command is, on standard error: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from thrifty.cli import output
from thrifty.cli.ticker import Ticker, seconds

if TYPE_CHECKING:
    from rich.progress import Progress

BAR = 40  # columns of a bar, less where the terminal is narrow


class Steps:
    """What is done of what there is to do. total may change as it becomes known."""

    def __init__(self, what: str, total: int) -> None:
        self.what = what
        self.total = total
        self.done = 0

    def advance(self) -> None:
        """One more is done."""
        self.done += 1
        self.total = max(self.total, self.done)

    def line(self, elapsed: float) -> str:
        """How far it is after so many seconds, and about how long it will take yet."""
        said = f"{self.what}: {self.done} of {self.total} in {seconds(elapsed)}"
        if not self.done:
            return said
        return f"{said}, about {seconds(elapsed / self.done * (self.total - self.done))} left"


class Bar(Steps):
    """Steps that a terminal shows as a bar."""

    def __init__(self, what: str, total: int) -> None:
        super().__init__(what, total)
        self.drawn = drawn()
        self._task = self.drawn.add_task(what, total=total)

    def advance(self) -> None:
        """One more is done."""
        super().advance()
        self.drawn.update(self._task, completed=self.done, total=self.total)


@contextmanager
def progress(what: str, total: int) -> Iterator[Steps]:
    """Show how far it is while it lasts; call `advance` once a step."""
    if sys.stderr.isatty():
        bar = Bar(what, total)
        with bar.drawn:
            yield bar
        return
    steps = Steps(what, total)
    with Ticker(steps.line, output.note):
        yield steps


def drawn() -> Progress:
    """A bar as wide as there is room for: what, how far, the time so far and the time left."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = output.messages()
    width = max(4, min(BAR, console.width - 45))
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=width), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True)
