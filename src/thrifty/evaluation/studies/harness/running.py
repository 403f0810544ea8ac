"""Running a study: cell after cell, every answer kept as it is made; first how long it will take, by a few items of the
uncompressed model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thrifty.api import open_engine
from thrifty.errors import StorageError, ThriftyError
from thrifty.evaluation.comparison import TaskItems
from thrifty.evaluation.scoring import check_room
from thrifty.evaluation.studies.harness.figures import LEAST
from thrifty.evaluation.studies.harness.grid import Cell, Grid
from thrifty.evaluation.studies.harness.serving import ServedRate, served_rate
from thrifty.evaluation.studies.harness.state import StudyState
from thrifty.evaluation.tasks.task import Item
from thrifty.recipe import Recipe

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine
    from thrifty.models.model import Model

REPEATED = 8  # items of every task that the baseline is asked again
FILLED = 0.85  # of the minutes are planned for
COMPRESSING = 1.2  # times the uncompressed model's seconds: what policies watch, move and round
MAKING = 2e-8  # seconds a byte of the model that rounding its weights is thought to take before any were rounded
CALIBRATING = 4e-7  # the same of a technique that looks at a text


@dataclass(frozen=True)
class Step:
    """What was just done. done, total: answers of all cells."""

    cell: Cell
    what: str
    done: int
    total: int


class Run:
    """One grid on one model. Iterate `steps`; stop whenever you like: what is done is in the state.

    work: tasks with their items by label. batches: of the served rates, none: no rates. length: tokens of the prompts
    of these. skipped: cells that could not be made or measured, with the reason.
    """

    def __init__(
        self,
        model: Model,
        grid: Grid,
        work: Mapping[str, TaskItems],
        state: StudyState,
        *,
        length: int,
        batches: Sequence[int] = (),
        minutes: float | None = None,
        threads: int | None = None,
        native: bool | None = None,
    ) -> None:
        self.grid, self.state, self.skipped = grid, state, dict[str, str]()
        self._model, self._work = model, dict(work)
        self._length, self._batches = length, tuple(batches)
        self._threads, self._native = threads, native
        self._limit = math.inf if minutes is None else 60 * minutes
        self._began = time.monotonic()
        self.items = max((len(own.items) for own in work.values()), default=0)
        self.asked = self.items

    # --- before ----------------------------------------------------------------------------------------

    def prepare(self) -> float:
        """Measure the pace and choose how many items are asked; the seconds that the run will take. The minutes run
        from here.

        Raises PromptError where an item or a served sequence does not fit the model's context.
        """
        self._began = time.monotonic()
        base = self.grid.baseline
        with self._engine(base) as engine:
            for own in self._work.values():
                check_room(engine, own.task, own.items)
            for own in self._work.values():
                self._ask(engine, base, own, own.items[0])
            if self._batches:
                self._serve(engine, base, max(self._batches))
        while self.asked > LEAST and self.expected() > FILLED * self._limit - self.spent:
            self.asked -= max(1, self.asked // 20)
        return self.expected()

    def expected(self) -> float:
        """Seconds of what is missing, by the baseline's own."""
        return sum(self._expected(group) for group in self.grid.groups())

    @property
    def spent(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    @property
    def late(self) -> bool:
        """Whether the minutes are over."""
        return self.spent >= self._limit

    def _expected(self, group: Sequence[Cell]) -> float:
        seconds = 0.0
        for cell in group:
            for own, _ in self._missing(cell):
                first = self.state.record(self.grid.baseline.key, own.task.label, own.items[0].identity)
                seconds += COMPRESSING * (first.seconds if first is not None else 0.0)
            seconds += sum(self._serving_seconds(batch) for batch in self._unserved(cell))
        if seconds and group[0].weights.tables:
            made = self.state.figure("making", group[0].weights.name)
            seconds += self._making(group[0]) if made is None else float(made)
        return seconds

    def _making(self, cell: Cell) -> float:
        """Seconds that the weights of a cell are thought to take."""
        rates = [CALIBRATING if own.needs_calibration else MAKING for own in cell.recipe.techniques("weights")]
        return sum(rates) * self._model.nbytes

    def _serving_seconds(self, batch: int) -> float:
        """A batch takes about as long as its prompts, which are read one after the other."""
        known = self.state.figure("rate", self._rate_key(self.grid.baseline, max(self._batches)))
        return 0.0 if known is None else float(known["seconds"]) * batch / max(self._batches)

    # --- the run ---------------------------------------------------------------------------------------

    @property
    def total(self) -> int:
        """Answers of all cells."""
        return sum(len(self._asked(cell)) for cell in self.grid.cells)

    def steps(self) -> Iterator[Step]:
        """Ask what the state does not hold yet; ends with the minutes."""
        done = self.total - sum(len(self._missing(cell)) for cell in self.grid.cells)
        for group in self.grid.groups():
            todo = [cell for cell in group if self._missing(cell) or self._unserved(cell)]
            if not todo or self.late:
                continue
            for step in self._group(todo):
                done += bool(step.what)
                yield Step(step.cell, step.what, done, self.total)

    def _group(self, cells: Sequence[Cell]) -> Iterator[Step]:
        """Cells that share weights; those that cannot be made are skipped, with the reason."""
        try:
            with self._engine(cells[0]) as engine:
                for cell in cells:
                    yield from self._cell(engine, cell)
                    if self.late:
                        return
        except ThriftyError as error:
            if isinstance(error, StorageError) or cells[0].weights == self.grid.baseline.weights:
                raise
            self.skipped |= {cell.label: str(error) for cell in cells}

    def _cell(self, engine: Engine, cell: Cell) -> Iterator[Step]:
        try:
            self._weigh(engine, cell)
            for own, item in self._missing(cell):
                if self.late:
                    return
                self._ask(engine, cell, own, item)
                yield Step(cell, own.task.label, 0, 0)
            for batch in self._unserved(cell):
                if self.late:
                    return
                self._serve(engine, cell, batch)
                yield Step(cell, "", 0, 0)
        except ThriftyError as error:
            if isinstance(error, StorageError) or cell.plain:
                raise
            self.skipped[cell.label] = str(error)

    def _ask(self, engine: Engine, cell: Cell, own: TaskItems, item: Item) -> None:
        if self.state.record(cell.key, own.task.label, item.identity) is None:
            self.state.add_record(cell.key, own.task.run(engine, item, cell.recipe.cache))

    def _weigh(self, engine: Engine, cell: Cell) -> None:
        """Keep the bytes that are reserved for the cache of one sequence between steps, with a prompt of the length."""
        if self.state.figure("cache", cell.key) is None:
            held = engine.cache_footprint(cell.recipe.techniques("cache"), self._length, self._length + 1)
            self.state.add_figure("cache", cell.key, held.steady_bytes)

    def _serve(self, engine: Engine, cell: Cell, batch: int) -> None:
        """Measure a rate that is not known or was disturbed; of two the quieter one is kept."""
        known = self._rate(cell, batch)
        if known is None or known.void:
            rate = served_rate(engine, cell.recipe.cache, batch, self._length)
            if known is None or rate.others < known.others:
                self.state.add_figure("rate", self._rate_key(cell, batch), rate.as_dict())

    def rates(self, cell: Cell) -> list[ServedRate]:
        """What was measured of a cell, by batch."""
        return [rate for batch in self._batches if (rate := self._rate(cell, batch)) is not None]

    def _rate(self, cell: Cell, batch: int) -> ServedRate | None:
        """What was measured of a cell at a batch, None where nothing was."""
        values = self.state.figure("rate", self._rate_key(cell, batch))
        return None if values is None else ServedRate.from_dict(values)

    def weights_bytes(self, cell: Cell) -> int | None:
        """Bytes of a cell's weights, None where they were not made."""
        held = self.state.figure("bytes", cell.weights.name)
        return None if held is None else int(held)

    def cache_bytes(self, cell: Cell) -> int | None:
        """Bytes that are reserved for the cache of one sequence, None where the cell was not reached."""
        held = self.state.figure("cache", cell.key)
        return None if held is None else int(held)

    def _asked(self, cell: Cell) -> list[tuple[TaskItems, Item]]:
        """The items that a cell is asked: a control that must be equal a few of them."""
        again = cell.control is not None and cell.control.must == "be equal"
        count = min(self.asked, REPEATED) if again else self.asked
        return [(own, item) for own in self._work.values() for item in own.items[:count]]

    def _missing(self, cell: Cell) -> list[tuple[TaskItems, Item]]:
        return [
            (own, item)
            for own, item in self._asked(cell)
            if self.state.record(cell.key, own.task.label, item.identity) is None
        ]

    def _unserved(self, cell: Cell) -> list[int]:
        """The batches of which a cell's rate is not known or was disturbed; controls have none."""
        if cell.control is not None:
            return []
        known = {batch: self._rate(cell, batch) for batch in self._batches}
        return [batch for batch, rate in known.items() if rate is None or rate.void]

    def _rate_key(self, cell: Cell, batch: int) -> str:
        return f"{cell.key}|{batch}|{self._length}|{self._threads}"

    @contextmanager
    def _engine(self, cell: Cell) -> Iterator[Engine]:
        """An engine with a cell's weights, which reads prompts in whole chunks and shares no prefix."""
        began = time.monotonic()
        engine = open_engine(
            self._model,
            Recipe(weights=cell.recipe.weights),
            threads=self._threads,
            native=self._native,
            prefix_tree=False,
            prefill_slice_ms=0.0,
        )
        try:
            if self.state.figure("bytes", cell.weights.name) is None:
                self.state.add_figure("bytes", cell.weights.name, engine.model.nbytes)
                self.state.add_figure("making", cell.weights.name, time.monotonic() - began)
            yield engine
        finally:
            engine.close()
