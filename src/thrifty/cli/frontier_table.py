"""The frontier as it grows: a live table on a terminal, one line a measurement elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from thrifty.cli import output

if TYPE_CHECKING:
    from thrifty.frontier.fit import Fit
    from thrifty.frontier.measurement import Measurement
    from thrifty.frontier.rungs import Rung

COLUMNS: tuple[tuple[str, Literal["left", "right"]], ...] = (
    ("recipe", "left"),
    ("weights", "left"),
    ("fits", "left"),
    ("rung", "right"),
    ("peak", "right"),
    ("steady", "right"),
    ("ledger peak", "right"),
    ("process", "right"),
    ("prefill/s", "right"),
    ("decode/s", "right"),
    ("KL", "right"),
    ("top-1", "right"),
    ("recovery", "right"),
)
SHOWN = 24  # rows of the last table; more are in the JSON document and in the report


class Watcher:
    """Shows rows as they are measured. quiet: only a progress bar, and only on a terminal."""

    def __init__(self, fit: Fit, quiet: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.fit = fit
        self.quiet = quiet
        self.count = 0
        self.terminal = sys.stdout.isatty() and sys.stderr.isatty()
        columns = (TextColumn("measuring recipes"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=output.messages())
        self.task = self.progress.add_task("fit", total=fit.total)
        self.live: Any = None

    def __enter__(self) -> Watcher:
        if self.terminal:
            from rich.live import Live

            self.live = Live(self._screen(), console=output.messages(), refresh_per_second=4, transient=True)
            self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from thrifty.errors import ThriftyError

        if self.live is not None:
            self.live.__exit__(kind, error, trace)
        if not self.quiet and self.count and (error is None or isinstance(error, KeyboardInterrupt | ThriftyError)):
            output.console().print(self._table(SHOWN))
            output.console().print(self._legend(), highlight=False)

    def add(self, row: Measurement) -> None:
        """Show one more row, in place of the one that the candidate had from an earlier rung."""
        self.count += 1
        self.progress.update(self.task, completed=self.count, total=max(self.count, self.fit.total))
        if self.live is not None:
            self.live.update(self._screen())
        elif not self.quiet:
            marker = "fits" if row.eligible else "too slow" if row.fits else "too big"
            cells = ", ".join(
                f"{name} {cell}" for (name, _), cell in zip(COLUMNS[3:], self._cells(row)[3:], strict=True) if cell
            )
            grid = row.candidate.grid.value
            done = f"[{self.count}/{max(self.count, self.fit.total)}]"
            sys.stdout.write(f"{done} {row.candidate.label} ({grid}; {marker}): {cells}\n")
            sys.stdout.flush()

    def _screen(self) -> Any:
        from rich.console import Group

        if self.quiet:
            return Group(self.progress)
        height = output.messages().size.height
        return Group(self._table(max(5, height - 8)), self.progress)

    def _table(self, most: int) -> Any:
        from rich.table import Table

        from thrifty.frontier.measurement import on_frontier

        best, rows = self.fit.best, self.fit.measured
        table = Table(header_style="bold")
        for name, side in COLUMNS:
            table.add_column(name, justify=side, no_wrap=name not in ("recipe", "weights"), overflow="fold")
        for row in self._foremost(rows, best, most):
            style = "bold green" if row is best else "" if on_frontier(row, rows) else "dim"
            table.add_row(*self._cells(row), style=style)
        return table

    def _foremost(self, rows: list[Measurement], best: Measurement | None, most: int) -> list[Measurement]:
        """As many rows as there is room for: those that came furthest, then the least divergence."""
        aside = [row for row in rows if not row.candidate.servable]
        order = sorted(
            (row for row in rows if row.candidate.servable),
            key=lambda row: (row is not best, row.quality is not None, -row.rung, row.kl),
        )
        return order[: max(1, most - len(aside))] + aside

    def _cells(self, row: Measurement) -> tuple[str, ...]:
        quality, best = row.quality, self.fit.best
        frontier = "★ " if row is best else ""
        recovery = row.recovery if quality else None
        return (
            frontier + row.candidate.label,
            row.candidate.grid.value,
            ("yes" if row.eligible else "no") if row.candidate.servable else "-",
            f"{row.rung + 1}",
            _mb(row.need.peak),
            _mb(row.need.steady),
            _mb(row.ledger_peak),
            _mb(row.process_peak),
            f"{row.prefill_rate:.0f}",
            f"{row.decode_rate:.1f}",
            f"{quality.kl.value:.4f}" if quality else "baseline",
            f"{quality.top1.value:.1%}" if quality else "",
            f"{recovery.value:.3f}±{(recovery.high - recovery.low) / 2:.3f}" if recovery else "",
        )

    def _legend(self) -> str:
        question = self.fit.question
        hidden = len(self.fit.measured) - SHOWN
        more = f" {hidden} more are in the JSON document and the report." if hidden > 0 else ""
        sequences = "one sequence" if question.batch == 1 else f"{question.batch} sequences"
        runs = "; ".join(f"{rung.prefix} then {rung.scored}{_questions(rung)}" for rung in self.fit.rungs)
        return LEGEND.format(context=question.context, sequences=sequences, runs=runs) + more


LEGEND = (
    "MB. peak, steady: weights + cache (+ workspace) of {sequences} at the full context ({context} tokens, the last "
    "256 an answer). rung: how far the recipe came; ledger, process, rates and quality were measured there (tokens "
    "that are compressed, then scored: {runs}) against the uncompressed model. 'on the grid': the checkpoint may "
    "already lie on such a grid, so the figure holds for it alone; 'off the grid': what the technique costs, not a "
    "recipe to serve. Dim: not on the frontier."
)


def _questions(rung: Rung) -> str:
    return {0: "", None: ", and all questions"}.get(rung.items, f", and {rung.items} questions a task")


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f}"
