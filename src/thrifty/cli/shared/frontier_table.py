"""The frontier as it grows: a live table on a terminal, one line a measurement elsewhere."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any

from thrifty.cli.shared import output
from thrifty.cli.shared.layout import Column, Layout, grid, layout
from thrifty.cli.shared.progress import ProgressBar, Steps, progress

if TYPE_CHECKING:
    from rich.table import Table

    from thrifty.frontier.candidates import Candidate
    from thrifty.frontier.fit import Fit
    from thrifty.frontier.measurement import Measurement
    from thrifty.frontier.rungs import Rung
    from thrifty.recipe import Recipe

COLUMNS = (
    Column("recipe", number=False),
    Column("fits", number=False, rank=1),
    Column("needs MB", rank=1),
    Column("KL", rank=2),
    Column("recovery", rank=3),
    Column("decode tok/s", rank=4),
    Column("top-1", rank=5),
    Column("rung", rank=6),
    Column("prefill tok/s", rank=7),
    Column("steady MB", rank=8),
    Column("ledger MB", rank=9),
    Column("process MB", rank=10),
)
MEANINGS = {
    "needs MB": "needs: weights, cache peak and workspace of {sequences} at the full context of {context} tokens, the "
    "last 256 an answer.",
    "steady MB": "steady: weights and cache between steps.",
    "ledger MB": "ledger, process: the highest of the run.",
    "KL": "KL, top-1: against the uncompressed model; nats, and how often both choose the same token.",
    "recovery": "recovery: what is left of its scores, with its 95 % interval.",
    "rung": "rung: how far a recipe came; rates and quality were measured there (tokens compressed, then scored: "
    "{runs}).",
}
"""What the legend says of a column that is shown."""
MAIN = ("bits", "capacity", "window", "keep")  # options that a technique's bare number stands for
WHAT = "measuring recipes"
SHOWN = 24  # rows of the last table; more are in the JSON document and in the report


class Watcher:
    """Shows rows as they are measured. quiet: only how far it is."""

    def __init__(self, fit: Fit, quiet: bool) -> None:
        self.fit = fit
        self.quiet = quiet
        self.bar: Any = None
        self.live: Any = None
        self.shown = ExitStack()

    def __enter__(self) -> Watcher:
        minutes = self.fit.question.minutes
        limit = math.inf if minutes is None else 60 * minutes
        if sys.stdout.isatty() and sys.stderr.isatty() and not self.quiet:
            from rich.live import Live

            self.steps: Steps = ProgressBar(WHAT, self.fit.total, limit)
            self.bar = self.steps.drawn
            self.live = Live(self._screen(), console=output.messages(), refresh_per_second=4, transient=True)
            self.shown.enter_context(self.live)
        else:
            self.steps = self.shown.enter_context(progress(WHAT, self.fit.total, limit))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from thrifty.errors import ThriftyError

        self.shown.close()
        foreseen = error is None or isinstance(error, KeyboardInterrupt | ThriftyError)
        if self.steps.done and not self.quiet and foreseen:
            console = output.console()
            rows = self._foremost(SHOWN)
            fitted = self._laid_out(rows, console.width)
            console.print(self._table(fitted, rows))
            console.print(self._legend(fitted), markup=False)

    def add(self, row: Measurement) -> None:
        """Show one more row, in place of the one that the candidate had from an earlier rung."""
        self.steps.total = self.fit.total
        self.steps.advance()
        if self.live is not None:
            self.live.update(self._screen())
        elif not self.quiet:
            marker = "fits" if row.eligible else "too slow" if row.fits else "too big"
            cells = zip(COLUMNS[2:], self._cells(row)[2:], strict=True)
            figures = ", ".join(f"{column.name} {cell}" for column, cell in cells if cell)
            done = f"[{self.steps.done}/{self.steps.total}]"
            sys.stdout.write(f"{done} {row.candidate.label} ({row.candidate.grid.value}; {marker}): {figures}\n")
            sys.stdout.flush()

    def _screen(self) -> Any:
        from rich.console import Group

        console = output.messages()
        room = console.size.height - 5  # the table's head, the bar, and a line for the cursor
        rows = self._foremost(max(3, room))
        fitted = self._laid_out(rows, console.width)
        heights = [fitted.height(self._cells(row)) for row in rows]
        while len(rows) > 1 and sum(heights[: len(rows)]) > room:
            rows.pop()
        return Group(self._table(fitted, rows), self.bar)

    def _laid_out(self, rows: Sequence[Measurement], width: int) -> Layout:
        return layout(COLUMNS, [self._cells(row) for row in rows], width)

    def _table(self, fitted: Layout, rows: Sequence[Measurement]) -> Table:
        from thrifty.frontier.measurement import on_frontier

        best, measured = self.fit.best, self.fit.measured
        styles = ["bold green" if row is best else "" if on_frontier(row, measured) else "dim" for row in rows]
        return grid(COLUMNS, [self._cells(row) for row in rows], fitted, styles=styles)

    def _foremost(self, most: int) -> list[Measurement]:
        """As many rows as there is room for: those that came furthest, then the least divergence."""
        rows, best = self.fit.measured, self.fit.best
        aside = [row for row in rows if not row.candidate.servable]
        order = sorted(
            (row for row in rows if row.candidate.servable),
            key=lambda row: (row is not best, row.quality is not None, -row.rung, row.kl),
        )
        return order[: max(1, most - len(aside))] + aside

    def _cells(self, row: Measurement) -> tuple[str, ...]:
        quality = row.quality
        recovery = row.recovery if quality else None
        return (
            ("★ " if row is self.fit.best else "") + short_label(row.candidate),
            ("yes" if row.eligible else "no") if row.candidate.servable else "-",
            _mb(row.need.peak),
            f"{quality.kl.value:.4f}" if quality else "baseline",
            f"{recovery.value:.3f}±{(recovery.high - recovery.low) / 2:.3f}" if recovery else "",
            f"{row.decode_rate:.1f}" if row.quiet else f"≤{row.rate_from_bytes:.0f}",
            f"{quality.top1.value:.1%}" if quality else "",
            f"{row.rung + 1}",
            f"{row.prefill_rate:.0f}" if row.quiet else "",
            _mb(row.need.steady),
            _mb(row.ledger_peak),
            _mb(row.process_peak),
        )

    def _legend(self, fitted: Layout) -> str:
        """What the columns that are shown mean, and which rows and columns are not."""
        question, rows = self.fit.question, self.fit.measured
        values = {
            "sequences": "one sequence" if question.batch == 1 else f"{question.batch} sequences",
            "context": question.context,
            "runs": "; ".join(f"{rung.prefix} then {rung.scored}{_questions(rung)}" for rung in self.fit.rungs),
        }
        shown = [COLUMNS[place].name for place in fitted.places]
        said = ["A technique's bare number is its bits, or the tokens that it keeps."]
        said += [meaning.format(**values) for name, meaning in MEANINGS.items() if name in shown]
        if any(row.candidate.recipe.weights for row in rows):
            said.append(GRIDS)
        if not all(row.quiet for row in rows):
            said.append(DISTURBANCE)
        said.append("Dim: not on the frontier.")
        if len(rows) > SHOWN:
            said.append(f"{len(rows) - SHOWN} more rows are in the JSON document and the report.")
        if fitted.omitted:
            said.append(output.left_out(fitted.omitted, output.console().width))
        return " ".join(said)


DISTURBANCE = (
    "≤: other work took so much of the processors that the speed is none of the recipe's; what its bytes allow at the "
    "full context stands instead."
)
GRIDS = (
    "Rounded weights: the checkpoint may already lie on such a grid, so the figure holds for it alone; 'off the grid' "
    "is what the technique costs elsewhere, not a recipe to serve."
)


def short_label(candidate: Candidate) -> str:
    """A candidate in few characters, such as "rtn 4, group 128 + snapkv 448 + kivi 4"; a recipe's own name as it is."""
    recipe: Recipe = candidate.recipe
    stages = (recipe.weights, recipe.prompt, recipe.cache, recipe.decoding)
    techniques = [_short(table) for stage in stages for table in stage]
    label = recipe.name or " + ".join(techniques) or recipe.label()
    return label if candidate.servable else f"{label} (off the grid)"


def _short(table: Mapping[str, Any]) -> str:
    options: list[str] = []
    for name, value in table.items():
        if name == "technique" or value is False or value is None:
            continue
        words = [] if name in MAIN and not options else [name.removesuffix("_bits").replace("_", " ")]
        if value is not True:
            words.append(" ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
        options.append(" ".join(words))
    return " ".join([str(table["technique"]), ", ".join(options)]).strip()


def _questions(rung: Rung) -> str:
    few = "1 question" if rung.items == 1 else f"{rung.items} questions"
    return {0: "", None: ", and all questions"}.get(rung.items, f", and {few} a task")


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f}"
